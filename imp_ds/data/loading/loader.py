"""The rotating loader: one pool of worker processes prepares the batches of all tasks, in the order of the schedule.

What a batch holds does not depend on who prepares it (`data.order.step_batches`), so workers and prefetching are a matter of
speed alone.
"""

import ctypes
import gc
import os
import signal
import threading
import time
import weakref
from functools import partial

import torch

from imp_ds.data.loading.batch_slots import BatchSlots
from imp_ds.data.loading.packed_batch import PackedBatch, dumps, make_packed
from imp_ds.data.loading.pinned_ahead import PinnedAhead
from imp_ds.data.loading.step_batches import StepBatches
from imp_ds.data.loading.worker_pool import WorkerLost, WorkerPool, start_method
from imp_ds.errors import UserError
from imp_ds.tasks import Batch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of glibc's malloc.h
_KEPT = 1 << 28  # bytes that may lie free at the end of the heap
_IN_HEAP = 1 << 25  # bytes: smaller arrays lie in the heap; glibc allows no more


class RotatingLoader:
    """Iterates the batches of one rank from `start_step` to `stop_step`, ahead of time in `workers` processes.

    Args:
        batches: step -> Batch.
        workers: processes; 0 prepares each batch when it is asked for.
        prefetch: batches that each worker prepares ahead.
        pin_memory: page-locked batches, for a GPU; ignored without one.
        timeout_s: how long to wait for a batch before giving up; 0 waits for ever.

    `wait_seconds` is the time that the last batch was waited for. Raises UserError for what `batches` returns as one, a
    worker that died and a wait that took too long.
    """

    def __init__(self, batches: StepBatches, *, start_step: int = 0, stop_step: int, workers: int = 1, prefetch: int = 2,
                 pin_memory: bool = False, timeout_s: float = 300.0):  # fmt: skip
        self.batches = batches
        self.step, self.stop_step, self.timeout_s = start_step, stop_step, timeout_s
        self.workers, self.prefetch, self.pinned = workers, prefetch, pin_memory and torch.cuda.is_available()
        self.wait_seconds = 0.0
        self._pool = self._slots = self._ahead = self._take = None

    def __len__(self) -> int:
        """Batches that are left."""
        return self.stop_step - self.step

    def __iter__(self) -> "RotatingLoader":
        return self

    def __next__(self) -> Batch:
        if self.step >= self.stop_step:
            self.close()
            raise StopIteration
        start = time.perf_counter()
        try:
            batch = self._made_ahead() if self.workers else self._made_now()
            if isinstance(batch, UserError):
                raise batch
        except BaseException:
            self.close()
            raise
        self.step += 1
        self.wait_seconds = time.perf_counter() - start
        return batch

    def close(self):
        """End the worker processes; the next batch, if one is asked for, starts new ones."""
        for source in (self._ahead, self._pool):
            if source is not None:
                source.close()
        self._pool = self._slots = self._ahead = self._take = None

    def _made_now(self) -> Batch | UserError:
        batch = self.batches[self.step]
        return batch.pin_memory() if self.pinned and isinstance(batch, Batch) else batch

    def _made_ahead(self) -> Batch | UserError:
        if self._pool is None:
            self._start()
        try:
            return self._take(self.timeout_s or None)
        except TimeoutError:
            raise _no_batch(self.step, f"a wait of {self.timeout_s:g} s") from None
        except WorkerLost as error:
            raise _no_batch(error.part, error) from error

    def _start(self) -> None:
        """Start the workers, which touch neither the GPU nor the process group."""
        if start_method() == "fork" and BatchSlots.are_there():
            # those ahead, as many again where another worker is slow, one being made, one computed with, one kept
            self._slots = BatchSlots(self.workers, 2 * self.prefetch + 3)
        make, steps = partial(_packed, self.batches, self._slots), range(self.step, self.stop_step)
        prepare = partial(_prepare_worker, self._slots)
        self._pool = WorkerPool(make, steps, workers=self.workers, ahead=self.prefetch, prepare=prepare, dumps=dumps)
        self._take = partial(_taken, self._pool, self._slots, self.pinned)
        if self.pinned:
            self._ahead = PinnedAhead(self._take, self.prefetch)
            self._take = self._ahead.take
            weakref.finalize(self, self._ahead.close)


def _taken(pool: WorkerPool, slots: BatchSlots | None, pinned: bool, timeout_s: float | None) -> Batch | UserError:
    sent = pool.take(timeout_s)
    return sent.unpack(slots, pinned) if isinstance(sent, PackedBatch) else sent


def _packed(batches: StepBatches, slots: BatchSlots | None, step: int) -> PackedBatch | UserError:
    return make_packed(partial(batches.first_of, step), slots)


def _prepare_worker(slots: BatchSlots | None, worker: int):
    if slots is not None:
        slots.fill_as(worker)
    gc.freeze()  # what the rank has made stays: to look for garbage in it takes a quarter of a second each time
    keep_freed_memory()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads did not survive the fork
    # a launcher that is asked to stop signals the workers too, but the rank still has a step to finish: only it ends them
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_for_parent, daemon=True).start()


def _end_for_parent():
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _no_batch(step: int, reason: object) -> UserError:
    fix = "often memory: fewer data.workers, a smaller data.cache_mb, more /dev/shm; or slow storage: a larger data.timeout_s"
    return UserError(f"the loader gave no batch for step {step}", got=reason, fix=fix)


def keep_freed_memory() -> None:
    """From now on this process keeps what it frees, up to 256 MiB: the next batch needs as much. Without glibc, nothing changes.

    glibc gives the end of the heap, and every large array, back to the kernel as soon as they are freed, and gets them again,
    page by page and zeroed, for the next batch: of audio up to 290 page faults a batch, 5 % of the time
    (benchmarks/results/loader.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _IN_HEAP)
        mallopt(_TRIM_THRESHOLD, _KEPT)
