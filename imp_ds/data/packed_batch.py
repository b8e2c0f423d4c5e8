"""A batch on its way from a loader worker to its rank: all tensors in one piece of shared memory.

Every piece of shared memory is handed over by a connection between the two processes, which takes both of them longer than a
batch of small images takes to copy (benchmarks/results/loader.md). So there is one for a batch, not one for a tensor.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from imp_ds.tasks import Batch, BatchReport

_ALIGNED = 64  # bytes: each tensor begins at a multiple of it, whatever its type


class _Place(NamedTuple):
    """Where a tensor lies: (modality, input name), ("", target name), or ("", "") for the samples' keys."""

    name: tuple[str, str]
    dtype: torch.dtype
    shape: torch.Size
    begin: int
    bytes: int


@dataclass(frozen=True)
class PackedBatch:
    """What is sent; `data` is uint8."""

    task: str
    places: list[_Place]
    data: torch.Tensor
    report: BatchReport

    def pin_memory(self) -> "PackedBatch":
        """The same in page-locked memory, one piece too."""
        return replace(self, data=self.data.pin_memory())

    def unpack(self) -> Batch:
        """The batch, whose tensors are views of `data`."""
        found = {}
        for name, dtype, shape, begin, size in self.places:
            found.setdefault(name[0], {})[name[1]] = self.data[begin : begin + size].view(dtype).view(shape)
        targets = found.pop("", {})
        return Batch(self.task, found, targets, targets.pop("", None), self.report)


def pack(batch: Batch) -> PackedBatch:
    """Copy a batch into one new piece of shared memory."""
    tensors = {(modality, name): t for modality, inputs in batch.inputs.items() for name, t in inputs.items()}
    tensors |= {("", name): tensor for name, tensor in batch.targets.items()}
    tensors |= {} if batch.key_B is None else {("", ""): batch.key_B}
    places, end = [], 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        places.append(_Place(name, tensor.dtype, tensor.shape, end, size))
        end += -(-size // _ALIGNED) * _ALIGNED
    # as torch's own collation does in a worker: written where it will be read, not copied there once more
    storage = torch.UntypedStorage._new_shared(end)
    packed = PackedBatch(batch.task, places, torch.empty(0, dtype=torch.uint8).set_(storage), batch.report)
    for place, tensor in zip(places, tensors.values()):
        view = packed.data[place.begin : place.begin + place.bytes].view(place.dtype)
        view.view(place.shape).copy_(tensor)
    return packed
