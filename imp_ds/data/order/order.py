"""Which sample stands at which position of a task: a pure function of (seed, epoch), computed from nothing that came before.

In each epoch the shards of a source are put in a new order, and the sequence of their rows is cut into windows, inside which
the rows are shuffled. So neighbours in a shard are read close in time, while memory holds one window's order, whatever the
number of samples; ranks, workers and resuming do not come in.

A task with several sources takes from each in proportion to its weight, exactly so in every block of positions. Each source
has epochs of its own.

Shapes: S shards, W positions of a window, P positions that are asked for together.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from imp_ds.errors import UserError

# What a random generator is for: with the seed, the first words of its own, so that no two uses share a stream.
_SHARDS, _WINDOW, _MIXTURE, _GROUPS = 1, 4, 5, 10
_KEPT = 4  # windows, or blocks, whose order is kept: workers come back to the last few only
_BLOCK = 4096  # positions in which the sources of a mixture have exactly their share


class SampleIndex(NamedTuple):
    """The index of a sample: which source of its task, in which epoch of that source, which row."""

    source: int
    epoch: int
    row: int


class SourceOrder:
    """The order of one source.

    Args:
        shard_rows: rows of each shard, [S].
        seed: what distinguishes this order from others, a sequence of numbers.
        window: W.
        multiple: the rows of an epoch are cut to a multiple of it, when nothing less than a whole batch is wanted.
    """

    def __init__(self, shard_rows: Sequence[int], seed: Sequence[int], window: int, multiple: int = 1):
        self.start_S = np.concatenate([[0], np.cumsum(shard_rows, dtype=np.int64)])
        self.seed, self.window = tuple(seed), window
        self.rows = int(self.start_S[-1]) // multiple * multiple
        self._shards, self._windows = {}, {}

    def at(self, positions: range) -> list[tuple[int, int]]:
        """(epoch, row) of successive positions, from 0 without end."""
        found, position = [], positions.start
        while position < positions.stop:
            epoch, inside = divmod(position, self.rows)
            number, begin = divmod(inside, self.window)
            end = begin + min(positions.stop - position, self.rows - inside, self.window - begin)
            position_P = number * self.window + self._window(epoch, number)[begin:end]
            begin_S, shift_S = self._shard_order(epoch)
            row_P = position_P + shift_S[np.searchsorted(begin_S, position_P, side="right") - 1]
            found += [(epoch, row) for row in row_P.tolist()]
            position += end - begin
        return found

    def _shard_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """For the shards in the order of an epoch, the position at which each begins, and how far its rows are from there."""

        def make():
            order_S = np.random.default_rng([_SHARDS, *self.seed, epoch]).permutation(len(self.start_S) - 1)
            rows_S = np.diff(self.start_S)[order_S]
            begin_S = np.cumsum(rows_S) - rows_S
            return begin_S, self.start_S[order_S] - begin_S

        return _kept(self._shards, epoch, make)

    def _window(self, epoch: int, number: int) -> np.ndarray:
        """The order inside a window. The last one of an epoch is shorter, and ends with the last row of all, also where the
        epoch is cut: then other rows are left out in each epoch."""
        full = int(self.start_S[-1])
        size = min(self.window, full - number * self.window)
        make = lambda: np.random.default_rng([_WINDOW, *self.seed, epoch, number]).permutation(size)  # noqa: E731
        return _kept(self._windows, (epoch, number), make)


class TaskOrder:
    """The order of a task over its sources.

    Args:
        sources: the order of each.
        weights: their relative shares.
        seed: of the mixture.

    Raises UserError for a share that is too small to be kept in a block.
    """

    def __init__(self, sources: list[SourceOrder], weights: list[float], seed: Sequence[int]):
        shares = np.array(weights, dtype=np.float64) / sum(weights)
        if shares.min() * _BLOCK < 2:
            raise UserError(
                "a source's share of its task is too small", got=f"{shares.min():.2g}", allowed=f"at least 1 in {_BLOCK // 2}",
                fix="raise its source.weight, or give it a task of its own",
            )  # fmt: skip
        self.sources, self.seed = sources, tuple(seed)
        edges = np.cumsum(shares)
        self._edges = [*(float(edge) for edge in edges[:-1]), 1.0]
        self._blocks = {}

    def at(self, positions: range) -> list[SampleIndex]:
        """The samples of successive positions, from 0 without end."""
        if len(self.sources) == 1:
            return [SampleIndex(0, *found) for found in self.sources[0].at(positions)]
        sample_indices = []
        for number in range(positions.start // _BLOCK, -(-positions.stop // _BLOCK)):
            first = number * _BLOCK
            inside = slice(max(0, positions.start - first), positions.stop - first)
            sample_indices += self._of_block(number, inside)
        return sample_indices

    def _of_block(self, number: int, inside: slice) -> list[SampleIndex]:
        """Those of some positions of a block; each source has successive positions of its own."""
        source_P, rank_P, before = self._block(number)
        source_P, rank_P, own = source_P[inside], rank_P[inside], {}
        for source in set(source_P.tolist()):
            rank = rank_P[source_P == source]
            own[source] = iter(self.sources[source].at(range(before[source] + int(rank[0]), before[source] + int(rank[-1]) + 1)))
        return [SampleIndex(source, *next(own[source])) for source in source_P.tolist()]

    def _taken(self, positions: int) -> list[int]:
        """How many of the first `positions` positions each source has; their sum is `positions`."""
        ends = [math.floor(positions * edge) for edge in self._edges]
        return [end - begin for begin, end in zip([0, *ends], ends)]

    def _block(self, number: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """For each position of a block its source and how many of that source came before it in the block; and before the
        block."""

        def make():
            before, after = self._taken(number * _BLOCK), self._taken((number + 1) * _BLOCK)
            counts = [b - a for a, b in zip(before, after)]
            source_P = np.repeat(np.arange(len(counts)), counts)
            source_P = np.random.default_rng([_MIXTURE, *self.seed, number]).permutation(source_P)
            rank_P = np.empty(_BLOCK, dtype=np.int64)
            for source, count in enumerate(counts):
                rank_P[source_P == source] = np.arange(count)
            return source_P, rank_P, before

        return _kept(self._blocks, number, make)


class GroupedOrder:
    """The order of a task, in which each run of some batches is sorted by length and cut into batches anew: those of one batch
    are then alike, and come in a random order among the other batches.

    Args:
        order: of the task.
        lengths: of each source, what gives the length of a row by its number.
        batch, batches: samples of a batch, and batches that are sorted together.
        seed: of their order.
    """

    def __init__(self, order: TaskOrder, lengths: Sequence, batch: int, batches: int, seed: Sequence[int]):
        self.order, self.lengths, self.batch, self.batches, self.seed = order, lengths, batch, batches, tuple(seed)
        self._runs = {}

    def at(self, positions: range) -> list[SampleIndex]:
        """The samples of successive positions, from 0 without end."""
        found, size = [], self.batch * self.batches
        for number in range(positions.start // size, -(-positions.stop // size)):
            first = number * size
            inside = slice(max(0, positions.start - first), positions.stop - first)
            found += _kept(self._runs, number, lambda number=number: self._run(number))[inside]
        return found

    def _run(self, number: int) -> list[SampleIndex]:
        size, rng = self.batch * self.batches, np.random.default_rng([_GROUPS, *self.seed, number])
        found = self.order.at(range(number * size, (number + 1) * size))
        length_P = [self.lengths[index.source][index.row] for index in found]
        sorted_NB = np.argsort(length_P, kind="stable").reshape(self.batches, self.batch)
        # inside a batch at random too: else the first rank would always have the shortest
        return [found[place] for batch in rng.permutation(self.batches) for place in rng.permutation(sorted_NB[batch]).tolist()]


def _kept(known: dict, key, make):
    """`known[key]`, made when it is not there; the oldest entries go."""
    if key not in known:
        while len(known) >= _KEPT:
            known.pop(next(iter(known)))
        known[key] = make()
    return known[key]
