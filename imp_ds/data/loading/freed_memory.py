"""What a loader worker does with memory that it frees: it keeps it, for the next batch needs as much.

glibc gives the end of the heap, and every large array, back to the kernel as soon as they are freed, and gets them again, page by
page and zeroed, for the next batch: of sounds up to 290 page faults a batch, 5 % of the time (benchmarks/results/loader.md).
"""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of glibc's malloc.h
_KEPT = 1 << 28  # bytes that may lie free at the end of the heap
_IN_HEAP = 1 << 25  # bytes: smaller arrays lie in the heap; glibc allows no more


def keep_freed_memory() -> None:
    """From now on this process keeps what it frees, up to 256 MiB. Without glibc, nothing changes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _IN_HEAP)
        mallopt(_TRIM_THRESHOLD, _KEPT)
