"""Shared memory that batches travel in from loader workers to their rank, used again and again.

New memory is slow: the kernel zeroes each page and maps it in both processes, which takes longer than to copy a batch into memory
that is mapped already; and to hand a new piece over takes a connection between the processes (benchmarks/results/loader.md). So
each worker has a few slots, made before it is started, and the large arrays of a batch are made in one from the beginning. A
slot grows to the largest batch that it has held. It is free again when the rank has let go of all tensors of its batch, however
long it keeps them; a worker without a free slot sends the batch in new memory.
"""

import fcntl
import math
import mmap
import os
import weakref

import numpy as np

_ALIGNED = 64  # bytes: each array begins at a multiple of it
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

    def take(self) -> "Slot | None":
        """A free slot, or None when none is free."""
        try:
            self._free += os.read(self._returned[self._worker][0], self._each)
        except BlockingIOError:
            pass
        return Slot(self, self._worker * self._each + self._free.pop()) if self._free else None

    def put_back(self, slot: "Slot") -> None:
        """What a worker has taken and does not send."""
        self._free.append(slot.number % self._each)

    def grown(self, slot: int, size: int) -> mmap.mmap:
        """In the worker that fills it: the memory of a slot, of `size` bytes at least. What was made in it before stays in it."""
        if size > os.fstat(self._files[slot]).st_size:
            os.ftruncate(self._files[slot], -(-size // _GRAIN) * _GRAIN)
        return self._map(slot, size)

    def open(self, slot: int, size: int) -> np.ndarray:
        """In the rank: the first `size` bytes of a slot that a worker has filled. When nothing refers to them any more, the slot
        is free again."""
        data = np.frombuffer(self._map(slot, size), np.uint8, size)
        worker, number = divmod(slot, self._each)
        weakref.finalize(data, _give_back, self, worker, number).atexit = False
        return data

    def _map(self, slot: int, size: int) -> mmap.mmap:
        if slot not in self._maps or len(self._maps[slot]) < size:
            self._maps[slot] = mmap.mmap(self._files[slot], os.fstat(self._files[slot]).st_size)
        return self._maps[slot]


def aligned(size: int) -> int:
    """Bytes that an array of `size` bytes takes up, so that the next is aligned too, whatever its type."""
    return -(-size // _ALIGNED) * _ALIGNED


class Pieces:
    """Memory that is given out array by array, from its beginning.

    used: bytes of it, up to a multiple of 64.
    """

    def __init__(self):
        self.used, self._begins = 0, {}

    def empty(self, shape: tuple[int, ...], dtype: np.typing.DTypeLike) -> np.ndarray:
        """An array in it, as `numpy.empty` makes it elsewhere."""
        begin, dtype = self.used, np.dtype(dtype)
        self.used += aligned(math.prod(shape) * dtype.itemsize)
        array = np.ndarray(shape, dtype, self._buffer(self.used), begin)
        if array.nbytes:  # what takes nothing shares its place with the next
            self._begins[array.ctypes.data] = begin
        return array

    def place(self, array: np.ndarray) -> int:
        """The byte at which an array begins that was made in it, or else is copied into it."""
        begin = self._begins.get(array.ctypes.data) if array.flags.c_contiguous else None
        if begin is None:
            begin = self.used
            self.empty(array.shape, array.dtype)[...] = array
        return begin

    def _buffer(self, size: int):
        """All of it, of `size` bytes at least."""
        raise NotImplementedError


class Slot(Pieces):
    """A slot in the hands of the worker that fills it."""

    def __init__(self, slots: BatchSlots, number: int):
        super().__init__()
        self._slots, self.number = slots, number

    def _buffer(self, size: int) -> mmap.mmap:
        return self._slots.grown(self.number, max(size, 1))  # no file of no bytes can be mapped


def _give_back(slots: BatchSlots, worker: int, number: int) -> None:
    os.write(slots._returned[worker][1], bytes([number]))


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
