"""A batch on its way from a loader worker to its rank: all tensors in one piece of shared memory, a slot where one is free
(`imp_ds.data.loading.batch_slots`), or else new memory.

What is sent beside it are numbers and names alone.
"""

import pickle
from collections.abc import Callable, Iterable
from multiprocessing.reduction import ForkingPickler
from typing import NamedTuple

import numpy as np
import torch

from imp_ds.data.loading.batch_slots import BatchSlots, Pieces, Slot, aligned
from imp_ds.errors import UserError
from imp_ds.tasks import Batch, BatchReport

# Where a tensor lies: modality and input name, "" and target name, or "" and "" for the samples' keys; its type's name in numpy
# and torch; its shape; the byte at which it begins. A plain tuple, since objects of a class take longer to pickle.
_Place = tuple[str, str, str, tuple[int, ...], int]


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
        memory = (data.pin_memory() if pinned else data).untyped_storage()
        for modality, name, dtype, shape, begin in self.places:
            tensor = torch.empty(0, dtype=getattr(torch, dtype))
            found.setdefault(modality, {})[name] = tensor.set_(memory, begin // tensor.itemsize, shape)
        targets = found.pop("", {})
        return Batch(self.task, found, targets, targets.pop("", None), self.report)


def make_packed(make: Callable[..., Batch | UserError], slots: BatchSlots | None) -> PackedBatch | UserError:
    """What `make` gives, packed. Large arrays are made in a slot, where one is free, by the `empty` that it is called with."""
    slot, batch = None if slots is None else slots.take(), None
    try:
        batch = make(empty=np.empty if slot is None else slot.empty)
    finally:
        if slot is not None and not isinstance(batch, Batch):
            slots.put_back(slot)
    return pack(batch, slot) if isinstance(batch, Batch) else batch


def pack(batch: Batch, slot: Slot | None = None) -> PackedBatch:
    """Bring a batch into one piece of shared memory: the slot, where what was made in it stays as it is, or new memory."""
    tensors = {(modality, name): tensor for modality, inputs in batch.inputs.items() for name, tensor in inputs.items()}
    tensors |= {("", name): tensor for name, tensor in batch.targets.items()}
    tensors |= {} if batch.key_B is None else {("", ""): batch.key_B}
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    pieces = _NewMemory(arrays.values()) if slot is None else slot
    places = [(*name, array.dtype.name, array.shape, pieces.place(array)) for name, array in arrays.items()]
    number, data = (None, pieces.data) if slot is None else (slot.number, None)
    return PackedBatch(batch.task, places, batch.report, pieces.used, number, data)


def dumps(message: tuple) -> bytes:
    """A message of `WorkerPool`, pickled. Shared memory is handed over by the pickler of multiprocessing, which takes longer for
    what needs no such care."""
    made = message[-1]
    in_slot = isinstance(made, PackedBatch) and made.slot is not None
    return pickle.dumps(message, pickle.HIGHEST_PROTOCOL) if in_slot else ForkingPickler.dumps(message)


class _NewMemory(Pieces):
    """Shared memory that is as large as these arrays: `data`, uint8."""

    def __init__(self, arrays: Iterable[np.ndarray]):
        super().__init__()
        # as torch's own collation does in a worker: written where it will be read, not copied there once more
        size = sum(aligned(array.nbytes) for array in arrays)
        self.data = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size))

    def _buffer(self, size: int) -> np.ndarray:
        return self.data.numpy()
