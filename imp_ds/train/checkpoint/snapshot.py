"""A copy of what this rank's optimizer holds, in host memory that is used again for every checkpoint."""

from dataclasses import dataclass

import torch

from imp_ds.train.master_state import WEIGHT, owned_slices


@dataclass(frozen=True)
class Entry:
    """Where a tensor of a file belongs: elements start .. start + numel of the flattened whole of `shape`."""

    shape: tuple[int, ...]
    start: int
    numel: int


class Snapshot:
    """The weights and moments that this rank alone writes: 12 bytes of host memory for each element that it owns.

    With ZeRO 1 to 3 that is 12 bytes of every parameter divided by its number of replicas; with ZeRO 0 the replicas take a
    share each. The memory is taken and touched at once: the first copy is as fast as the others, and a machine that is too
    small fails at the start. On a GPU it is pinned.
    """

    def __init__(self, engine):
        self._on_gpu = engine.device.type == "cuda"
        self.entries = {"model": {}, "optimizer": {}}  # file -> key -> Entry, in the order of the file
        for piece in owned_slices(engine):
            for kind in piece.tensors:
                file, key = _place(kind, piece.name)
                self.entries[file][key] = Entry(piece.shape, piece.start, piece.numel)
        self._buffers, self._views = {}, {}
        for file, entries in self.entries.items():
            numels = [entry.numel for entry in entries.values()]
            buffer = torch.empty(sum(numels), dtype=torch.float32, pin_memory=self._on_gpu).zero_()
            self._buffers[file] = buffer
            self._views |= dict(zip(entries, buffer.split(numels)))

    def take(self, engine) -> None:
        """Copy the engine's present state; the engine may go on when this returns. No exchange between ranks."""
        for piece in owned_slices(engine):
            for kind, value in piece.tensors.items():
                self._views[_place(kind, piece.name)[1]].copy_(value, non_blocking=True)
        if self._on_gpu:
            torch.cuda.synchronize()

    def bytes_of(self, file: str) -> memoryview:
        """The data of "model" or "optimizer", tensors one after another."""
        return memoryview(self._buffers[file].numpy()).cast("B")

    @property
    def size(self) -> int:
        """Bytes of all data."""
        return sum(buffer.nbytes for buffer in self._buffers.values())


def _place(kind: str, name: str) -> tuple[str, str]:
    """File and key of a parameter's weight or moment."""
    return ("model", name) if kind == WEIGHT else ("optimizer", f"{kind}/{name}")
