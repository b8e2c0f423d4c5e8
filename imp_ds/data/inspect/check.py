"""What is in a source: its samples looked at one by one, as far as each task can use them, and what was found, added up."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from imp_ds.data.decoding import decode
from imp_ds.data.inspect.tallies import Contents, Spread, file_digest, script_of, text_digest
from imp_ds.data.loading.worker_pool import WorkerLost, WorkerPool
from imp_ds.data.reader import Reader
from imp_ds.errors import UserError
from imp_ds.modalities.decoding_settings import DEFAULTS, DecodingSettings
from imp_ds.modalities.media import BadSample, Media, RawSample
from imp_ds.modalities.media_cache import MediaCache
from imp_ds.modalities.modality import Wanted, files_of, get_modality
from imp_ds.modalities.text import tokens as text
from imp_ds.tasks import Rejection, Task

_LEAST, _PARTS = 32, 2000  # rows that are looked at together; parts of a large source
_AHEAD = 2  # parts that a process looks at before they are added up
_SHOWN = 10  # samples that are named
_CACHE_MB = 512  # what tasks that see a sample alike decode once


def first_examples(rejections: list[Rejection], most: int) -> list[Rejection]:
    """The first of each reason, and so many others that there are `most`; in their order."""
    firsts = {rejection.reason: place for place, rejection in reversed(list(enumerate(rejections)))}
    others = [place for place in range(len(rejections)) if place not in firsts.values()]
    shown = {*firsts.values(), *others[: max(0, most - len(firsts))]}
    return [rejection for place, rejection in enumerate(rejections) if place in shown]


@dataclass
class Findings:
    """What was found in the rows of one source.

    rows: how many were looked at.
    left_out: task -> reason -> how many it cannot use.
    examples: one of each reason, and a few more.
    spreads: of numbers that samples have: "width", "height", "frames", "video seconds", "frames a second", "audio seconds",
        "samples a second", "channels", "bytes" (of a media file), "captions" (of a sample), "words" and "tokens" (of a caption),
        "turns", "images", "videos", "recordings" and "token ids" (of a conversation, as a model reads it).
    kinds: suffixes of media files, by role.
    scripts: of captions.
    labels: samples of each class index.
    media, captions: which come more than once.
    """

    rows: int = 0
    left_out: dict[str, Counter[str]] = field(default_factory=dict)
    examples: list[Rejection] = field(default_factory=list)
    spreads: dict[str, Spread] = field(default_factory=dict)
    kinds: dict[str, Counter[str]] = field(default_factory=dict)
    scripts: Counter[str] = field(default_factory=Counter)
    labels: Counter[int] = field(default_factory=Counter)
    media: Contents = field(default_factory=Contents)
    captions: Contents = field(default_factory=Contents)

    def merge(self, other: "Findings") -> None:
        """Add what was found in other rows, which come after the own ones."""
        self.rows += other.rows
        for own, others in ((self.left_out, other.left_out), (self.kinds, other.kinds)):
            for name, counts in others.items():
                own.setdefault(name, Counter()).update(counts)
        self.examples = first_examples(self.examples + other.examples, _SHOWN)
        for name, spread in other.spreads.items():
            self.spreads.setdefault(name, Spread()).merge(spread)
        self.scripts.update(other.scripts)
        self.labels.update(other.labels)
        self.media.merge(other.media)
        self.captions.merge(other.captions)

    @property
    def most_left_out(self) -> int:
        """The rows that the task which can use the fewest cannot use."""
        return max((reasons.total() for reasons in self.left_out.values()), default=0)


class Looks:
    """part -> the Findings in its rows.

    Args:
        reader: a source.
        tasks: those that read it.
        tokenizer: counts tokens, if there is one.
        conversation_tokens: as that of `Wanted`.
    """

    def __init__(
        self, reader: Reader, tasks: list[Task], tokenizer=None, decoding: DecodingSettings = DEFAULTS,
        conversation_tokens: Callable | None = None,
    ):  # fmt: skip
        self.reader, self.tasks, self.tokenizer, self.decoding = reader, tasks, tokenizer, decoding
        self.conversation_tokens = conversation_tokens
        self.size = max(_LEAST, -(-len(reader) // _PARTS))

    def __len__(self) -> int:
        return -(-len(self.reader) // self.size)

    def has_tokens(self, caption: str) -> bool:
        """Whether a caption has a token, as far as that is known."""
        return self.tokenizer is None or text.has_tokens(caption, self.tokenizer)

    def rows(self, part: int) -> range:
        return range(part * self.size, min((part + 1) * self.size, len(self.reader)))

    def __getitem__(self, part: int) -> Findings:
        found = Findings(left_out={task.name: Counter() for task in self.tasks})
        for row in self.rows(part):
            self._look(row, found)
        return found

    def _look(self, row: int, found: Findings) -> None:
        found.rows += 1
        try:
            raw = self.reader.read(row)
        except BadSample as bad:
            self._leave_out(row, bad, self.tasks, found)
            return
        cache, lengths = MediaCache(_CACHE_MB), []

        def counted(conversation: list) -> int:
            lengths.append(self.conversation_tokens(conversation))
            return lengths[-1]

        count = None if self.conversation_tokens is None else counted
        for task in self.tasks:
            try:
                decode(raw, task.views, None, cache, wanted=Wanted.of(task, self.decoding, self.has_tokens, count))
            except BadSample as bad:
                self._leave_out(row, bad, [task], found)
        self._add(found, {"token ids": length for length in lengths[:1]})
        self._count(row, raw, found)

    def _leave_out(self, row: int, bad: BadSample, tasks: list[Task], found: Findings) -> None:
        for task in tasks:
            found.left_out[task.name][bad.reason] += 1
        rejection = Rejection(self.reader.name, self.reader.key(row), bad.reason, bad.detail)
        if rejection not in found.examples:
            found.examples = first_examples([*found.examples, rejection], _SHOWN)

    def _count(self, row: int, raw: RawSample, found: Findings) -> None:
        values = {role: value for role, value in raw.items() if role != "label"}
        media = files_of(raw)
        for role, files in media.items():
            if files:
                found.kinds.setdefault(role, Counter()).update(one.suffix or "no suffix" for one in files)
        for one in {one.name: one for files in media.values() for one in files}.values():  # a video and its audio are one file
            self._count_bytes(row, one, found)
        for role, value in values.items():
            self._add(found, get_modality(role).facts(value))
            if captions := get_modality(role).captions(value):
                self._count_captions(row, captions, found)
        if "label" in raw:
            found.labels[raw["label"]] += 1

    def _count_bytes(self, row: int, media: Media, found: Findings) -> None:
        try:
            with media.open() as file:
                found.media.add(file_digest(file), row)
                self._add(found, {"bytes": file.seek(0, 2)})
        except (BadSample, OSError):
            pass  # counted where it was to be decoded

    def _count_captions(self, row: int, captions: list[str], found: Findings) -> None:
        for caption in captions:
            self._add(found, {"words": len(caption.split())})
            found.scripts[script_of(caption)] += 1
            found.captions.add(text_digest(caption), row)
        if self.tokenizer is not None:
            for ids in self.tokenizer(captions, verbose=False)["input_ids"]:
                self._add(found, {"tokens": len(ids)})

    @staticmethod
    def _add(found: Findings, facts: dict[str, float]) -> None:
        for name, value in facts.items():
            found.spreads.setdefault(name, Spread()).add(value)


def look(
    reader: Reader, tasks: list[Task], tokenizer=None, processes: int = 0, progress: Callable | None = None,
    decoding: DecodingSettings = DEFAULTS, conversation_tokens: Callable | None = None,
) -> Findings:  # fmt: skip
    """All rows of a reader, looked at by some processes, or by this one where they are 0.

    Raises UserError when a process dies.
    """
    looks, found = Looks(reader, tasks, tokenizer, decoding, conversation_tokens), Findings()
    for part, one in enumerate(_in_processes(looks, processes)):
        found.merge(one)
        if progress is not None:
            progress(f"looking at {reader.name}", found.rows, len(reader))
    return found


def _in_processes(looks: Looks, processes: int) -> Iterable[Findings]:
    if not processes:
        yield from map(looks.__getitem__, range(len(looks)))
        return
    pool = WorkerPool(looks.__getitem__, range(len(looks)), workers=processes, ahead=_AHEAD, prepare=_one_thread)
    try:
        for _ in range(len(looks)):
            yield pool.take()
    except WorkerLost as error:
        rows = looks.rows(error.part)
        raise UserError(
            f"{looks.reader.name}: a process died while it looked at samples",
            got=f"{looks.reader.key(rows[0])} or one of the next {len(rows)}: {error}",
            fix="often memory: fewer --processes",
        ) from error
    finally:
        pool.close()


def _one_thread(_process: int) -> None:
    torch.set_num_threads(1)
