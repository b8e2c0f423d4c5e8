"""The order of samples: every row once an epoch, in windows, the same however it is asked for, in memory that does not grow."""

import tracemalloc

import numpy as np
import pytest

from imp_ds.data.order.order import SampleIndex, SourceOrder, TaskOrder
from imp_ds.errors import UserError


def epoch(order, number):
    return order.at(range(number * order.rows, (number + 1) * order.rows))


@pytest.mark.parametrize("shard_rows, window", [([20], 65536), ([5, 1, 7, 3], 4), ([1] * 9, 2), ([3, 0, 4], 100)])
def test_every_row_comes_once_in_each_epoch(shard_rows, window):
    order, rows = SourceOrder(shard_rows, [7], window), sum(shard_rows)
    seen = [epoch(order, number) for number in range(3)]
    for number, positions in enumerate(seen):
        assert {e for e, _ in positions} == {number}
        assert sorted(row for _, row in positions) == list(range(rows))
    assert len({tuple(row for _, row in positions) for positions in seen}) == 3  # no epoch repeats the order of another


def test_a_position_can_be_asked_for_in_any_order():
    one = lambda order, position: order.at(range(position, position + 1))  # noqa: E731
    # fresh ones: nothing came before
    expected = sum((one(SourceOrder([30, 10, 20], [1], 8), position) for position in range(200)), [])
    order = SourceOrder([30, 10, 20], [1], 8)
    assert order.at(range(200)) == expected and order.at(range(50, 70)) == expected[50:70] and order.at(range(3, 3)) == []
    assert sum((one(order, position) for position in reversed(range(200))), []) == expected[::-1]


def test_shards_are_read_close_in_time():
    # 100 shards of 10 rows in windows of 20: a window holds 2 shards, or 3 where one of them is cut in two, never more.
    order = SourceOrder([10] * 100, [3], 20)
    rows = np.array([row for _, row in epoch(order, 0)])
    shards = [set(window // 10) for window in rows.reshape(50, 20)]
    assert all(len(found) == 2 for found in shards)  # 20 is a multiple of 10: none is cut
    first = [window[0] // 10 for window in rows.reshape(50, 20)]
    assert first != sorted(first)  # and the shards come in an order of their own
    mixed = sum(bool((np.diff(window // 10) != 0).sum() > 1) for window in rows.reshape(50, 20))
    assert mixed > 40  # inside a window rows of both alternate


def test_seeds_and_tasks_have_orders_of_their_own():
    rows = [[row for _, row in epoch(SourceOrder([50], seed, 64), 0)] for seed in ([0, 1], [0, 2], [1, 1])]
    assert len(set(map(tuple, rows))) == 3


def test_what_does_not_fill_a_batch_can_be_left_out():
    order = SourceOrder([4, 6], [0], 3, multiple=4)
    assert order.rows == 8
    left_out = [set(range(10)) - {row for _, row in epoch(order, number)} for number in range(20)]
    assert all(len(rows) == 2 for rows in left_out)
    assert len(set().union(*left_out)) > 5  # other rows in other epochs


def mixture(weights, rows=(100, 100, 100)):
    orders = [SourceOrder([n], [0, i], 64) for i, n in enumerate(rows[: len(weights)])]
    return TaskOrder(orders, weights, [5])


def test_a_mixture_has_its_shares():
    # 3 : 1 : 4 of 4096 are 1536, 512 and 2048, in each block.
    order = mixture([3.0, 1.0, 4.0])
    for block in (0, 1, 7):
        sources = [index.source for index in order.at(range(block * 4096, (block + 1) * 4096))]
        assert np.bincount(sources).tolist() == [1536, 512, 2048]
        assert len(set(map(tuple, np.reshape(sources, (64, 64))))) == 64  # drawn, not in stripes


def test_each_source_of_a_mixture_walks_through_its_own_epochs():
    order = mixture([2.0, 1.0])
    sample_indices = order.at(range(3 * 4096))
    assert [sample_indices[5]] == mixture([2.0, 1.0]).at(range(5, 6)) and isinstance(sample_indices[5], SampleIndex)
    assert sample_indices[4000:4200] == mixture([2.0, 1.0]).at(range(4000, 4200))  # of two blocks
    for source in (0, 1):
        own = [(index.epoch, index.row) for index in sample_indices if index.source == source]
        assert len(set(own)) == len(own)  # no row twice in an epoch
        for number in range(own[-1][0]):
            assert sorted(row for epoch, row in own if epoch == number) == list(range(100))


def test_a_share_too_small_for_a_block_is_refused():
    with pytest.raises(UserError, match="too small"):
        mixture([1.0, 4000.0])
    assert mixture([2.0, 4094.0]).at(range(1))[0].source in (0, 1)


@pytest.mark.parametrize("rows", [10**3, 10**5, 10**7])
def test_memory_does_not_grow_with_the_rows(rows):
    shards = np.full(max(1, rows // 4096), 4096)
    tracemalloc.start()
    order = SourceOrder(shards, [0], 65536)
    for position in np.linspace(0, order.rows - 1, 50).astype(int).tolist():
        order.at(range(position, position + 1))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # four windows of 65,536 int64 are 2 MiB, a permutation being made another two
    assert peak < 8 * 2**20
