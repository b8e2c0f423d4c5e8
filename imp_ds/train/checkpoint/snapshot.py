"""A copy of what this rank's optimizer holds, in host memory that is used again for every checkpoint; beside it, small things:
persistent buffers, and the state of the random generators."""

from dataclasses import dataclass

import torch

from imp_ds.parallel.full_parameters import persistent_buffers
from imp_ds.parallel.groups import is_main
from imp_ds.train import random_state
from imp_ds.train.engine.master_state import AVERAGE, WEIGHT, owned_slices

BUFFER = "buffer/"  # begins the key of a buffer
RANDOM = "random"


@dataclass(frozen=True)
class Entry:
    """Where a tensor of a file belongs: elements start .. start + numel of the flattened whole of `shape`."""

    shape: tuple[int, ...]
    start: int
    numel: int


class Snapshot:
    """The weights and moments that this rank alone writes: 12 bytes of host memory for each element that it owns, 16 with
    an average of the weights.

    With ZeRO 1 to 3 that is as much of every trained parameter divided by its number of replicas; with ZeRO 0 the replicas take
    a share each. The memory is taken and touched at once: the first copy is as fast as the others, and a machine that is too
    small fails at the start. On a GPU it is pinned. Rank 0 holds the buffers too.
    """

    def __init__(self, engine):
        self._device = engine.device
        pinned = engine.device.type == "cuda"
        # file -> key -> Entry, in the order of the file
        self.entries = {"model": {}, "optimizer": {}, AVERAGE: {}, "buffers": {}}
        for piece in owned_slices(engine):
            for kind in piece.tensors:
                file, key = _place(kind, piece.name)
                self.entries[file][key] = Entry(piece.shape, piece.start, piece.numel)
        self._views, self._random = {}, {}
        for file in ("model", "optimizer", AVERAGE):
            entries = self.entries[file]
            numels = [entry.numel for entry in entries.values()]
            buffer = torch.empty(sum(numels), dtype=torch.float32, pin_memory=pinned).zero_()
            self._views |= dict(zip(entries, buffer.split(numels)))
        # wide elements first: each tensor of a file begins at a multiple of its element's size
        buffers = sorted(persistent_buffers(engine.model).items(), key=lambda named: -named[1].element_size())
        for name, value in buffers if is_main() else ():
            self.entries["buffers"][BUFFER + name] = Entry(tuple(value.shape), 0, value.numel())
            self._views[BUFFER + name] = torch.empty_like(value, device="cpu", memory_format=torch.contiguous_format)

    def take(self, engine) -> None:
        """Copy the engine's present state; the engine may go on when this returns. No exchange between ranks."""
        for piece in owned_slices(engine):
            for kind, value in piece.tensors.items():
                self._views[_place(kind, piece.name)[1]].copy_(value, non_blocking=True)
        buffers = persistent_buffers(engine.model)
        for key in self.entries["buffers"]:
            self._views[key].copy_(buffers[key.removeprefix(BUFFER)])
        self._random = random_state.capture(self._device)
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def files(self) -> dict[str, dict[str, torch.Tensor]]:
        """Kind of file -> its tensors by key, in host memory; kinds that this rank has nothing of are not there."""
        found = {kind: {key: self._views[key] for key in entries} for kind, entries in self.entries.items()}
        return {kind: tensors for kind, tensors in (found | {RANDOM: self._random}).items() if tensors}

    @property
    def size(self) -> int:
        """Bytes of all data."""
        return sum(view.nbytes for view in self._views.values())


def _place(kind: str, name: str) -> tuple[str, str]:
    """File and key of a parameter's weight, moment or average."""
    if kind == WEIGHT:
        return "model", name
    return AVERAGE if kind == AVERAGE else "optimizer", f"{kind}/{name}"
