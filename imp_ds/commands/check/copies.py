"""What two sources, or two splits of one, have in common: an evaluation on what was trained on says too much.

Files are compared by a hash of their bytes, the captions of sources without media by a hash of the text; only samples that were
looked at are compared.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

from imp_ds.commands.check.request import CheckRequest
from imp_ds.data.inspect.check import Findings, look
from imp_ds.data.order.subset import Subset
from imp_ds.data.sources import has_split, open_reader

_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Overlap:
    """Contents that stand in two sources or splits.

    first, second: their names.
    what: "media files" or "captions".
    count: of different contents; an estimate where `estimated`.
    same: the keys of a few samples, in the first and in the second.
    """

    first: str
    second: str
    what: str
    count: int
    estimated: bool
    same: list[tuple[str, str]]

    def __str__(self) -> str:
        about, keys = "about " if self.estimated else "", ", ".join(f"{one} and {other}" for one, other in self.same[:2])
        return f"{self.first} and {self.second} have {about}{self.count:,} {self.what} in common: {keys}"


def overlaps(looked_at: list[tuple[Subset, Findings]]) -> list[Overlap]:
    """Of each two sources or splits that have something in common. Two readers of one path and split are one source."""
    found = []
    for (first, one), (second, other) in combinations(looked_at, 2):
        media = bool(one.media.different and other.media.different)
        mine, theirs = (one.media, other.media) if media else (one.captions, other.captions)
        only_texts = not one.media.different and not other.media.different
        if first.name != second.name and (media or only_texts):
            count, rows = mine.shared(theirs)
            if count:
                keys = [(first.key(row), second.key(same)) for row, same in rows]
                estimated = max(mine.every, theirs.every) > 1
                found.append(Overlap(first.name, second.name, "media files" if media else "captions", count, estimated, keys))
    return found


def other_splits(request: CheckRequest, progress: Callable) -> list[tuple[Subset, Findings]]:
    """The samples of the splits that are there beside the one that is asked for, each source once, as far as they are compared.

    Raises UserError for a split that is there and cannot be read.
    """
    run, split = request.run, request.split
    sources = {source.model_dump_json(exclude={"weight", "fraction"}): source for task in run.tasks for source in task.sources}
    found = []
    for source in sources.values():
        for other in _SPLITS:
            if other != split and has_split(run.data.root, source, other):
                reader = open_reader(run.data.root, source, other, run.data, progress)
                subset = request.rows(reader)
                found.append((subset, look(subset, [], None, request.number_of_processes, progress, run.data.decoding)))
    return found


def cut_captions(found: Findings, length: int) -> float | None:
    """Share of the captions that a view of `length` tokens cuts; None where tokens were not counted."""
    return _mean(found, "tokens", lambda tokens: tokens > length)


def padded(found: Findings, fact: str, seconds: float) -> float | None:
    """Mean share of a view of so many seconds that is padding; None where `fact`, a sample's length, is not known."""
    return _mean(found, fact, lambda length: max(0.0, 1 - length / seconds))


def _mean(found: Findings, name: str, value: Callable[[float], float]) -> float | None:
    if name not in found.spreads:
        return None
    counts = found.spreads[name].counts
    return sum(count * value(number) for number, count in counts.items()) / counts.total()
