"""Slots of shared memory: used again as soon as, and not before, nobody looks at what is in them."""

import gc
import os
from functools import partial

import numpy as np
import pytest
import torch

from helpers.small_loader import flat, loader
from imp_ds.data.loading.batch_slots import BatchSlots
from imp_ds.data.loading.packed_batch import make_packed
from imp_ds.errors import UserError


def open_files() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def test_a_slot_is_free_again_when_the_last_view_of_it_is_gone():
    slots = BatchSlots(workers=2, each=2)
    slots.fill_as(1)
    taken = [slots.take() for _ in range(2)]
    for slot in taken:
        slot.empty((10,), np.uint8)
    assert sorted(slot.number for slot in taken) == [2, 3] and slots.take() is None  # those of the second worker
    kept = torch.from_numpy(slots.open(3, 10))[2:4]
    assert slots.take() is None
    del kept
    assert slots.take().number == 3 and slots.take() is None


def test_a_slot_that_is_put_back_is_free_again():
    slots = BatchSlots(workers=2, each=1)
    slots.fill_as(1)
    slot = slots.take()
    slots.put_back(slot)
    assert slots.take().number == slot.number == 1 and slots.take() is None


def test_a_slot_grows_with_what_it_holds():
    slots = BatchSlots(workers=1, each=1)
    slots.fill_as(0)
    for size in (3, 5_000_000, 100, 9_000_000):
        slot = slots.take()
        slot.empty((size,), np.uint8)[:] = np.arange(size) % 251
        assert np.array_equal(slots.open(slot.number, size), np.arange(size) % 251)


def test_arrays_lie_one_after_another_and_stay_while_the_slot_grows():
    slots = BatchSlots(workers=1, each=1)
    slots.fill_as(0)
    slot = slots.take()
    first = slot.empty((2, 3), np.float32)
    first[:] = 7.0
    nothing = slot.empty((0, 5), np.int64)
    large = slot.empty((3_000_000,), np.uint8)  # more than the slot had
    large[:] = 5
    copied = np.arange(6).reshape(2, 3).T  # int64, not contiguous
    first += 1.0  # also after it has grown, it is the slot that is written to
    # 24 bytes take up 64; 0 none; 3,000,000 are a multiple of 64; 48 take up 64
    assert [slot.place(one) for one in (first, nothing, large, copied)] == [0, 3_000_064, 64, 3_000_064]
    assert slot.used == 3_000_128
    data = slots.open(slot.number, slot.used)
    assert data[:24].view(np.float32).tolist() == [8.0] * 6
    assert (data[64:3_000_064] == 5).all()
    assert data[3_000_064:3_000_112].view(np.int64).tolist() == [0, 3, 1, 4, 2, 5]


def test_a_view_that_is_not_contiguous_is_copied():
    slots = BatchSlots(workers=1, each=1)
    slots.fill_as(0)
    slot = slots.take()
    made = slot.empty((2, 2), np.uint8)
    made[:] = [[1, 2], [3, 4]]
    assert slot.place(made.T) == 64  # though it begins where `made` does
    assert slots.open(slot.number, 128)[64:68].tolist() == [1, 3, 2, 4]


def test_nothing_stays_open():
    before = open_files()
    slots = BatchSlots(workers=2, each=3)
    slots.fill_as(0)
    slot = slots.take()
    slot.empty((100,), np.uint8)
    kept = slots.open(slot.number, 100)
    del slots, slot
    assert open_files() > before  # the batch is still looked at
    del kept
    assert open_files() == before


def test_the_loader_uses_few_slots_for_many_batches_and_lets_go_of_all(root):
    list(loader(root, workers=1, stop_step=1))  # multiprocessing keeps the memory in which its first numbers were shared
    before = open_files()
    some = loader(root, workers=2, prefetch=1, stop_step=40)
    places = {next(iter(batch.inputs.values())).popitem()[1].untyped_storage().data_ptr() for batch in some}
    assert 1 <= len(places) <= 10  # 2 workers have 5 slots each
    del some
    assert open_files() == before


def test_batches_that_are_kept_stay_what_they_were(root):
    expected = [flat(batch) for batch in loader(root, stop_step=40)]
    kept = list(loader(root, workers=1, prefetch=1, stop_step=40))  # ten times as many as there are slots
    for one, other in zip(expected, map(flat, kept), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_pictures_are_made_in_their_slot_and_nothing_lies_there_twice(root):
    slots = BatchSlots(workers=1, each=1)
    slots.fill_as(0)
    batches = loader(root).batches
    sent = make_packed(partial(batches.first_of, 0), slots)
    tensors = flat(batches[0])
    assert sent.size == sum(-(-tensor.nbytes // 64) * 64 for tensor in tensors.values())
    found = flat(sent.unpack(slots))
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_a_batch_that_is_not_made_gives_its_slot_back():
    slots = BatchSlots(workers=1, each=1)
    slots.fill_as(0)
    message = UserError("no such thing")
    assert make_packed(lambda empty: message, slots) is message
    with pytest.raises(ZeroDivisionError):
        make_packed(lambda empty: 1 // 0, slots)
    assert slots.take() is not None
