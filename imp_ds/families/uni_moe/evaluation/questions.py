"""The conversations of a split as questions: all turns before the assistant's last one are the prompt, and that is the reference.

Beside with its own media a question is asked blind, with blank media, and with those of another conversation of the split which
has as many of each kind in the same order.
"""

from collections import defaultdict
from typing import NamedTuple

import numpy as np

from imp_ds.data.decoding import decode
from imp_ds.data.reader import Reader
from imp_ds.errors import UserError
from imp_ds.modalities.media import BadSample
from imp_ds.modalities.media_cache import MediaCache
from imp_ds.modalities.messages.spellings import KINDS, media_of, text_of
from imp_ds.modalities.modality import Wanted
from imp_ds.modalities.views import Views

OWN, BLIND, SHUFFLED = MODES = ("own", "blind", "shuffled")
_SEED = 0  # of whose media are whose; the same in every evaluation, so that models are compared on the same questions


class Question(NamedTuple):
    """row: of the split; kinds: of the media in its prompt, in order; question: the text of the last turn of the prompt;
    references: right answers, one or several."""

    row: int
    key: str
    kinds: tuple[str, ...]
    question: str
    references: tuple[str, ...]


class Questions:
    """The questions of a split. They are the same on every rank; media are read when a prompt is asked for.

    Args:
        reader: of the source.
        views: with `messages`.
        wanted: what a conversation must have to be of use.
        samples: how many rows are asked, spread over the split; None: all.
        cache_mb: decoded media are kept while they take at most this much.

    Attributes: `groups`, {kinds: questions}; `left_out`, rows without a question so far: they cannot be read.
    """

    def __init__(self, reader: Reader, views: Views, wanted: Wanted, samples: int | None, cache_mb: int):
        self._reader, self._views, self._wanted = reader, views, wanted
        self._cache = MediaCache(cache_mb)
        count = len(reader) if samples is None else min(samples, len(reader))
        self.rows = (np.arange(count) * len(reader) // max(1, count)).tolist()
        found = [question for row in self.rows if (question := self._question(row)) is not None]
        self.groups: dict[tuple[str, ...], list[Question]] = defaultdict(list)
        for question in found:
            self.groups[question.kinds].append(question)
        self._after = {}
        for group in self.groups.values():
            order = np.random.default_rng(_SEED).permutation(len(group)).tolist()
            for one, other in zip(order, order[1:] + order[:1]):
                self._after[group[one].row] = group[other].row
        if not found:
            raise UserError(f"{reader.name}: no conversation can be used", fix="imp_ds data check RECIPE shows why")

    def prompt(self, question: Question, mode: str) -> list[dict] | None:
        """The decoded conversation that is asked in a mode; None where it cannot be decoded, or no other has such media."""
        if (prompt := self._prompt(question.row)) is None:
            return None
        if mode == BLIND:
            return _with_media(prompt, [np.zeros_like(medium) for _, medium in media_of(prompt)])
        if mode == SHUFFLED:
            other = self._other(question.row)
            return None if other is None else _with_media(prompt, [medium for _, medium in media_of(other)])
        return prompt

    def any_prompt(self, kinds: tuple[str, ...]) -> list[dict] | None:
        """The first prompt of a group that can be decoded; None: there is none."""
        return next((prompt for one in self.groups[kinds] if (prompt := self._prompt(one.row)) is not None), None)

    def _question(self, row: int) -> Question | None:
        try:
            raw = self._reader.read(row)["messages"]
        except BadSample:
            return None
        prompt, reference = _cut(raw)
        if not prompt:
            return None
        kinds = tuple(kind for kind, _ in media_of(prompt))
        return Question(row, self._reader.key(row), kinds, text_of(prompt[-1:]), _texts(reference))

    def _prompt(self, row: int) -> list[dict] | None:
        try:
            sample = decode(self._reader.read(row), self._views, cache=self._cache, wanted=self._wanted)
        except BadSample:
            return None
        return _cut(sample["messages"])[0]

    def _other(self, row: int) -> list[dict] | None:
        """The prompt of the next conversation in the group's order that can be decoded."""
        after = self._after[row]
        while after != row:
            if (prompt := self._prompt(after)) is not None:
                return prompt
            after = self._after[after]
        return None


def _texts(turn: dict) -> tuple[str, ...]:
    """What a turn says, in each of its wordings."""
    return tuple(text_of([{"content": content}]) for content in (turn["content"], *turn.get("others", [])))


def _cut(conversation: list[dict]) -> tuple[list[dict], dict]:
    """The turns before the assistant's last, and that."""
    last = max(place for place, turn in enumerate(conversation) if turn["role"] == "assistant")
    return conversation[:last], conversation[last]


def _with_media(prompt: list[dict], media: list[np.ndarray]) -> list[dict]:
    """The conversation with these media in the places of its own."""
    new = iter(media)
    return [
        turn | {"content": [part | {part["type"]: next(new)} if part["type"] in KINDS else part for part in turn["content"]]}
        for turn in prompt
    ]
