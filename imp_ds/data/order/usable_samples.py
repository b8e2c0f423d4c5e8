"""The samples at given indices, or others where those cannot be used.

A sample that cannot be used is left out on its rank alone: another row of its source, drawn from the sample's own random
stream, takes its place, so that neither the other samples nor the other ranks notice.
"""

import struct
import zlib
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.random.bit_generator import ISeedSequence

from imp_ds.data.decoding import decode_all
from imp_ds.data.order.order import SampleIndex
from imp_ds.data.reader import Reader
from imp_ds.errors import UserError
from imp_ds.modalities.media import BadSample, RawSample
from imp_ds.modalities.media_cache import MediaCache
from imp_ds.modalities.modality import Wanted, files_of
from imp_ds.modalities.views import Views
from imp_ds.tasks import Rejection, Task

# What a random generator is for: the first word of its seed, so that no two uses share a stream (`order.py` has others).
_SAMPLE, _SUBSTITUTE = 2, 6
# samples of which one kind of work is done after another (`imp_ds.modalities.in_turn`); bytes of media that their rows hold
_TOGETHER, _HELD = 64, 1 << 24
_ATTEMPTS = 100  # rows that are tried for one sample; at a tenth of them broken, 1e-100 of all samples need more


class Usable(NamedTuple):
    """A decoded sample; the generator that goes on with what is random about it; its key."""

    sample: dict
    rng: np.random.Generator
    key: str


class _Tried(NamedTuple):
    """A row that may be the sample of an index, not decoded yet: its key, what the reader gives of it, the index's generator."""

    index: SampleIndex
    key: str
    raw: RawSample | BadSample
    rng: np.random.Generator

    @property
    def held(self) -> int:
        """Bytes of media in memory."""
        if isinstance(self.raw, BadSample):
            return 0
        return sum(len(file.data) for files in files_of(self.raw).values() for file in files if file.data is not None)


class UsableSamples:
    """Finds samples of a task.

    Args:
        views: what is seen of them.
        readers: of the task's sources.
        seed: of what training draws.
        cache: decoded media that are kept.
        wanted: what a sample must have.

    `rejected`: those that could not be used.
    """

    def __init__(self, task: Task, views: Views, readers: list[Reader], seed: int, cache: MediaCache, wanted: Wanted):
        self.task, self.views, self.readers, self.cache, self.wanted = task, views, readers, cache, wanted
        self.rejected: list[Rejection] = []
        self._stream = seed, zlib.crc32(task.name.encode())

    def at(self, sample_indices: Sequence[SampleIndex]) -> list[Usable]:
        """A sample for each index: its own, or the first usable one of those that may take its place. Raises UserError where a
        hundred one after another cannot be used."""
        found, tried, held = [], [], 0
        for end, index in enumerate(sample_indices, start=1):
            tried.append(self._look_up(index, index.row, 0))
            held += tried[-1].held
            if end == len(sample_indices) or len(tried) == _TOGETHER or held > _HELD:
                found += self._usable(tried)
                tried, held = [], 0
        return found

    def _look_up(self, index: SampleIndex, row: int, attempt: int) -> _Tried:
        reader, rng = self.readers[index.source], sample_stream(_SAMPLE, *self._stream, *index, attempt)
        try:
            return _Tried(index, reader.key(row), reader.read(row), rng)
        except BadSample as bad:
            return _Tried(index, reader.key(row), bad.without_frames(), rng)

    def _usable(self, tried: list[_Tried]) -> list[Usable]:
        decoded = zip(tried, self._decoded(tried))
        return [
            self._substitute(first, sample) if isinstance(sample, BadSample) else Usable(sample, first.rng, first.key)
            for first, sample in decoded
        ]

    def _decoded(self, tried: list[_Tried]) -> list[dict | BadSample]:
        raws, rngs = [one.raw for one in tried], [one.rng for one in tried]
        return decode_all(raws, self.views, rngs, self.cache, augment=self.task.augment, wanted=self.wanted)

    def _substitute(self, tried: _Tried, bad: BadSample) -> Usable:
        """What takes the place of a sample whose own row is bad."""
        reader = self.readers[tried.index.source]
        for attempt in range(_ATTEMPTS):
            self.rejected.append(Rejection(reader.name, tried.key, bad.reason, bad.detail))
            row = int(sample_stream(_SUBSTITUTE, *self._stream, *tried.index, attempt).integers(len(reader)))
            tried = self._look_up(tried.index, row, attempt + 1)
            (sample,) = self._decoded([tried])
            if not isinstance(sample, BadSample):
                return Usable(sample, tried.rng, tried.key)
            bad = sample
        raise UserError(
            f"task {self.task.name}: {_ATTEMPTS} samples one after another cannot be used",
            got=f"{reader.name}: {tried.key}: {bad}",
            fix="imp_ds data check RECIPE shows what is wrong with a source",
        )  # fmt: skip


class _Words(ISeedSequence):
    """A seed that is known already: uint64 [4]."""

    def __init__(self, words_4: np.ndarray):
        self.words_4 = words_4

    def generate_state(self, n_words: int, dtype=np.uint32) -> np.ndarray:
        assert n_words == 4 and dtype == np.uint64, (n_words, dtype)  # what PCG64 asks for
        return self.words_4


def sample_stream(*words: int) -> np.random.Generator:
    """A generator that is a pure function of these numbers, each of 64 bits with a sign; other numbers give another stream.

    numpy's own mixing of several numbers into a seed (SeedSequence) takes 20 us, a tenth of what a small image takes to decode; a
    hash of them takes 2 us (benchmarks/results/loader.md) and is no worse a seed.
    """
    digest = blake2b(struct.pack(f"<{len(words)}q", *words), digest_size=32).digest()
    return np.random.Generator(np.random.PCG64(_Words(np.frombuffer(digest, np.uint64))))
