"""The rotating loader: one pool of worker processes prepares the batches of all tasks, in the order of the schedule.

What a batch holds does not depend on who prepares it (`imp_ds.data.step_batches`), so workers and prefetching are a matter of
speed alone.
"""

import multiprocessing
import os
import signal
import threading
import time
from functools import partial

import torch
from torch.utils.data import DataLoader

from imp_ds.data.batch_slots import BatchSlots
from imp_ds.data.packed_batch import PackedBatch, pack
from imp_ds.data.step_batches import StepBatches
from imp_ds.errors import UserError
from imp_ds.tasks import Batch

_LOOK_S = 2.0  # how often a waiting loader looks whether its workers live


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
        self.wait_seconds = 0.0
        # fork starts at once and shares the rows; the workers touch neither the GPU nor the process group.
        method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
        self._settings = dict(num_workers=workers, pin_memory=pin_memory and torch.cuda.is_available())
        if workers:
            look_s = min(_LOOK_S, timeout_s or _LOOK_S)
            self._settings |= dict(prefetch_factor=prefetch, timeout=look_s, worker_init_fn=_prepare_worker,
                                   multiprocessing_context=multiprocessing.get_context(method))  # fmt: skip
        self._iterator = self._slots = None

    def __len__(self) -> int:
        """Batches that are left."""
        return self.stop_step - self.step

    def __iter__(self) -> "RotatingLoader":
        return self

    def __next__(self) -> Batch:
        start = time.perf_counter()
        if self._iterator is None:
            if self.step >= self.stop_step:
                raise StopIteration
            self._iterator = self._start()
        try:
            batch = self._wait(start + self.timeout_s)
        except (StopIteration, UserError):
            self.close()
            raise
        self.step += 1
        self.wait_seconds = time.perf_counter() - start
        return batch

    def close(self):
        """End the worker processes; the next batch, if one is asked for, starts new ones."""
        self._iterator = self._slots = None

    def _start(self):
        """Start the workers. torch's handler for a dying worker is taken off again: it would raise in the middle of whatever
        the training is doing; `_wait` finds a dead worker at its next look."""
        handler = signal.getsignal(signal.SIGCHLD)  # None: set outside Python, and not ours to set again
        steps = range(self.step, self.stop_step)
        if self._settings["num_workers"]:
            self._slots = self._new_slots()
            sent = partial(_packed, self._slots)
        else:
            sent = _as_it_is
        iterator = iter(DataLoader(self.batches, batch_size=None, sampler=steps, collate_fn=sent, **self._settings))
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler)
        return iterator

    def _wait(self, deadline: float) -> Batch:
        """The next batch of the workers, looking after them every _LOOK_S seconds."""
        while True:
            try:
                batch = next(self._iterator)
            except RuntimeError as error:
                late = str(error).startswith("DataLoader timed out")
                if late and (not self.timeout_s or time.perf_counter() < deadline):
                    continue
                if not late and not str(error).startswith("DataLoader worker"):
                    raise
                raise _no_batch(self.step, f"a wait of {self.timeout_s:g} s" if late else str(error).splitlines()[0]) from error
            except (ConnectionError, EOFError, FileNotFoundError) as error:  # a batch of its was on the way
                raise _no_batch(self.step, f"a worker process exited unexpectedly ({error!r})") from error
            if isinstance(batch, UserError):
                raise batch
            return batch.unpack(self._slots) if isinstance(batch, PackedBatch) else batch

    def _new_slots(self) -> BatchSlots | None:
        """Slots that workers inherit; none where they would not, and none where torch's thread copies each batch into page-locked
        memory, which finds no slots. Beside those ahead a batch is being made, one is computed with, and one is kept."""
        method = self._settings["multiprocessing_context"].get_start_method()
        if method != "fork" or self._settings["pin_memory"] or not BatchSlots.are_there():
            return None
        return BatchSlots(self._settings["num_workers"], self._settings["prefetch_factor"] + 3)


def _as_it_is(batch: Batch | UserError) -> Batch | UserError:
    return batch


def _packed(slots: BatchSlots | None, batch: Batch | UserError) -> PackedBatch | UserError:
    return batch if isinstance(batch, UserError) else pack(batch, slots)


def _prepare_worker(_worker: int):
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads did not survive the fork
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which then ends its workers
    # a launcher that is told to stop signals the workers too, but the rank still has a step to finish: only it ends them
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_for_parent, daemon=True).start()


def _end_for_parent():
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def _no_batch(step: int, reason: str) -> UserError:
    fix = "often memory: fewer data.workers, a smaller data.cache_mb, more /dev/shm; or slow storage: a larger data.timeout_s"
    return UserError(f"the loader gave no batch for step {step}", got=reason, fix=fix)
