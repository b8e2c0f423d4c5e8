"""Shared memory that batches travel in from loader workers to their rank, used again and again.

New memory is slow: the kernel zeroes each page and maps it in both processes, which takes longer than to copy a batch into memory
that is mapped already; and to hand a new piece over takes a connection between the processes (benchmarks/results/loader.md). So
each worker has a few slots, made before it is started. A slot grows to the largest batch that it has held. It is free again when
the rank has let go of all tensors of its batch, however long it keeps them; a worker without a free slot sends the batch in new
memory.
"""

import fcntl
import mmap
import os
import weakref

import numpy as np

_GRAIN = 1 << 21  # bytes: slots grow by multiples of it, so that batches of nearly one size do not map them anew each time


class BatchSlots:
    """The slots of all workers. Made by the rank, and inherited by its workers through fork.

    Args:
        workers: how many.
        each: slots of a worker.
    """

    def __init__(self, workers: int, each: int):
        self._each = each
        self._files = [os.memfd_create("batch", os.MFD_CLOEXEC) for _ in range(workers * each)]
        self._maps: dict[int, mmap.mmap] = {}
        self._returned = [os.pipe() for _ in range(workers)]  # numbers of slots, a byte for each
        for reading, writing in self._returned:
            for end in (reading, writing):
                fcntl.fcntl(end, fcntl.F_SETFL, fcntl.fcntl(end, fcntl.F_GETFL) | os.O_NONBLOCK)
        self._worker, self._free = None, []
        self._close = weakref.finalize(self, _close, [*self._files, *(end for pair in self._returned for end in pair)])

    @staticmethod
    def are_there() -> bool:
        """Whether this system has what they need."""
        return hasattr(os, "memfd_create")

    def fill_as(self, worker: int) -> None:
        """Make this process the one that fills the slots of that worker."""
        self._worker, self._free = worker, list(range(self._each))

    def take(self, size: int) -> tuple[int, np.ndarray] | None:
        """(number of a free slot, its first `size` bytes as uint8), or None when none is free."""
        try:
            self._free += os.read(self._returned[self._worker][0], self._each)
        except BlockingIOError:
            pass
        if not self._free:
            return None
        slot = self._worker * self._each + self._free.pop()
        if size > os.fstat(self._files[slot]).st_size:
            os.ftruncate(self._files[slot], -(-size // _GRAIN) * _GRAIN)
        return slot, self._bytes(slot, size)

    def open(self, slot: int, size: int) -> np.ndarray:
        """In the rank: the first `size` bytes of a slot that a worker has filled. When nothing refers to them any more, the slot
        is free again."""
        data = self._bytes(slot, size)
        worker, number = divmod(slot, self._each)
        weakref.finalize(data, _give_back, self, worker, number).atexit = False
        return data

    def _bytes(self, slot: int, size: int) -> np.ndarray:
        if slot not in self._maps or len(self._maps[slot]) < size:
            self._maps[slot] = mmap.mmap(self._files[slot], os.fstat(self._files[slot]).st_size)
        return np.frombuffer(self._maps[slot], np.uint8, size)


def _give_back(slots: BatchSlots, worker: int, number: int) -> None:
    os.write(slots._returned[worker][1], bytes([number]))


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
