"""Slots of shared memory: used again as soon as, and not before, nobody looks at what is in them."""

import gc
import os

import numpy as np
import torch
from test_loader import flat, loader, root  # noqa: F401

from imp_ds.data.batch_slots import BatchSlots


def open_files() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def test_a_slot_is_free_again_when_the_last_view_of_it_is_gone():
    slots = BatchSlots(workers=2, each=2)
    slots.fill_as(1)
    taken = [slots.take(10)[0] for _ in range(2)]
    assert sorted(taken) == [2, 3] and slots.take(10) is None  # those of the second worker
    kept = torch.from_numpy(slots.open(3, 10))[2:4]
    assert slots.take(10) is None
    del kept
    assert slots.take(10)[0] == 3 and slots.take(10) is None


def test_a_slot_grows_with_what_it_holds():
    slots = BatchSlots(workers=1, each=1)
    slots.fill_as(0)
    for size in (3, 5_000_000, 100, 9_000_000):
        slot, data = slots.take(size)
        data[:] = np.arange(size) % 251
        assert np.array_equal(slots.open(slot, size), np.arange(size) % 251)


def test_nothing_stays_open():
    before = open_files()
    slots = BatchSlots(workers=2, each=3)
    slots.fill_as(0)
    kept = slots.open(slots.take(100)[0], 100)
    del slots
    assert open_files() > before  # the batch is still looked at
    del kept
    assert open_files() == before


def test_the_loader_uses_few_slots_for_many_batches_and_lets_go_of_all(root):  # noqa: F811
    before = open_files()
    some = loader(root, workers=2, prefetch=1, stop_step=40)
    places = {next(iter(batch.inputs.values())).popitem()[1].untyped_storage().data_ptr() for batch in some}
    # 2 workers have 4 slots each, and those of a worker that nobody is behind are enough
    assert 1 <= len(places) <= 8
    del some
    assert open_files() == before


def test_batches_that_are_kept_stay_what_they_were(root):  # noqa: F811
    expected = [flat(batch) for batch in loader(root, stop_step=40)]
    kept = list(loader(root, workers=1, prefetch=1, stop_step=40))  # ten times as many as there are slots
    for one, other in zip(expected, map(flat, kept), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
