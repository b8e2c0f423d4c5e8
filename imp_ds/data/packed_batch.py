"""A batch on its way from a loader worker to its rank: all tensors in one piece of shared memory, a slot where one is free
(`imp_ds.data.batch_slots`), or else new memory.

What is sent beside it are numbers and names alone.
"""

from typing import NamedTuple

import numpy as np
import torch

from imp_ds.data.batch_slots import BatchSlots
from imp_ds.tasks import Batch, BatchReport

_ALIGNED = 64  # bytes: each tensor begins at a multiple of it, whatever its type


class _Place(NamedTuple):
    """Where a tensor lies: (modality, input name), ("", target name), or ("", "") for the samples' keys; its type's name in numpy
    and torch."""

    name: tuple[str, str]
    dtype: str
    shape: tuple[int, ...]
    begin: int
    bytes: int


class PackedBatch(NamedTuple):
    """What is sent: `data`, uint8 in shared memory, or the number of the slot whose first `size` bytes hold it."""

    task: str
    places: list[_Place]
    report: BatchReport
    size: int
    slot: int | None
    data: torch.Tensor | None

    def unpack(self, slots: BatchSlots | None = None, pinned: bool = False) -> Batch:
        """The batch, whose tensors are views of the shared memory, in a slot, which is free when the last of them is gone; or of
        a copy in page-locked memory."""
        data, found = self.data if self.slot is None else torch.from_numpy(slots.open(self.slot, self.size)), {}
        data = data.pin_memory() if pinned else data
        for name, dtype, shape, begin, size in self.places:
            found.setdefault(name[0], {})[name[1]] = data[begin : begin + size].view(getattr(torch, dtype)).view(shape)
        targets = found.pop("", {})
        return Batch(self.task, found, targets, targets.pop("", None), self.report)


def pack(batch: Batch, slots: BatchSlots | None = None) -> PackedBatch:
    """Copy a batch into shared memory; with `slots`, those that this process fills."""
    arrays = {(modality, name): t.numpy() for modality, inputs in batch.inputs.items() for name, t in inputs.items()}
    arrays |= {("", name): tensor.numpy() for name, tensor in batch.targets.items()}
    arrays |= {} if batch.key_B is None else {("", ""): batch.key_B.numpy()}
    places, end = [], 0
    for name, array in arrays.items():
        places.append(_Place(name, array.dtype.name, array.shape, end, array.nbytes))
        end += -(-array.nbytes // _ALIGNED) * _ALIGNED
    slot, data = _memory(end, slots)
    there = data.numpy() if slot is None else data
    for place, array in zip(places, arrays.values()):
        np.ndarray(array.shape, array.dtype, there, place.begin)[...] = array
    return PackedBatch(batch.task, places, batch.report, end, slot, data if slot is None else None)


def _memory(size: int, slots: BatchSlots | None) -> tuple[int | None, np.ndarray | torch.Tensor]:
    """(number of the slot, or None for new memory, its bytes)."""
    taken = None if slots is None else slots.take(size)
    if taken is not None:
        return taken
    # as torch's own collation does in a worker: written where it will be read, not copied there once more
    return None, torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size))
