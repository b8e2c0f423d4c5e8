"""Decoded media kept in memory, bounded by bytes.

What was decoded first stays: under a new random order in each epoch the first K of N files serve K / N of all reads,
whereas the files seen last are the ones not read again soon.
"""

from collections.abc import Callable, Hashable


class MediaCache:
    """Decoded frames and recordings of one process.

    Args:
        megabytes: the bound; 0 keeps nothing.
    """

    def __init__(self, megabytes: float):
        self._free = int(megabytes * 2**20)
        self._kept = {}

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def get(self, key: Hashable, read: Callable):
        """The value of `key`: an array, or (array, rate), made by `read()` when it is not kept. It is read-only."""
        if key in self._kept:
            return self._kept[key]
        value = read()
        array = value[0] if isinstance(value, tuple) else value
        array.flags.writeable = False
        if array.nbytes <= self._free:
            self._free -= array.nbytes
            self._kept[key] = value
        return value
