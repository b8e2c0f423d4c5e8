"""The rotating loader: one pool of worker processes prepares the batches of all tasks, in the order of the schedule.

The batch of a step is a pure function of (seed, step, rank), computed from nothing that was loaded before. A run that
is resumed, has more ranks or other workers sees the same samples. Each task walks through a new seeded order of
its source in each epoch; a batch may span two epochs and nothing is left over.

Shapes: N rows of a source.
"""

import multiprocessing
import os
import signal
import threading
import time
import zlib
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from imp_ds.data.cache import MediaCache
from imp_ds.data.collation import Collator
from imp_ds.data.decoding import DecodeError, decode
from imp_ds.data.sources import FolderSource
from imp_ds.errors import UserError
from imp_ds.randomness import sample_keys
from imp_ds.tasks import Batch, Task, Views

# What a random generator is for: the first word of its seed, so that no two uses share a stream.
_ORDER, _SAMPLE = 1, 2
_LOOK_S = 2.0  # how often a waiting loader looks whether its workers live


class StepBatches(Dataset):
    """step -> Batch, for one rank. A failure that the user is to read comes back as a value: raised in a worker, it
    would reach the main process wrapped in the worker's traceback."""

    def __init__(self, tasks: list[Task], schedule, sources: dict[str, FolderSource], collator: Collator, *, seed: int,
                 rank: int, world: int, cache_mb: float):  # fmt: skip
        self.tasks = {task.name: task for task in tasks}
        self.schedule, self.sources, self.collator = schedule, sources, collator
        self.seed, self.rank, self.world = seed, rank, world
        self.cache = MediaCache(cache_mb)
        self._orders = {task.name: {} for task in tasks}

    def _order(self, task: str, epoch: int) -> np.ndarray:
        """The order of a source's rows in an epoch: a permutation of N. Two are kept, as a batch may span the end of one."""
        known = self._orders[task]
        if epoch not in known:
            while len(known) > 1:
                known.pop(min(known))
            seed = [_ORDER, self.seed, zlib.crc32(task.encode()), epoch]
            known[epoch] = np.random.default_rng(seed).permutation(len(self.sources[task]))
        return known[epoch]

    def samples(self, step: int) -> list[tuple[int, int]]:
        """(epoch, row) of each sample of this rank at a step."""
        name, visit = self.schedule.at(step)
        task, rows = self.tasks[name], len(self.sources[name])
        local = task.batch_size // self.world
        first = visit * task.batch_size + self.rank * local
        places = [divmod(place, rows) for place in range(first, first + local)]
        return [(epoch, int(self._order(name, epoch)[place])) for epoch, place in places]

    def __getitem__(self, step: int) -> Batch | UserError:
        return self.first_of(step, None)

    def first_of(self, step: int, most: int | None) -> Batch | UserError:
        """The batch of a step, or as much of it as its first `most` samples."""
        task = self.tasks[self.schedule.at(step).name]
        stream = zlib.crc32(task.name.encode())
        samples, rngs = [], []
        try:
            for epoch, row in self.samples(step)[:most]:
                rngs.append(np.random.default_rng([_SAMPLE, self.seed, stream, epoch, row]))
                samples.append(decode(self.sources[task.name], row, task.views, rngs[-1], self.cache))
            batch = self.collator(task.name, task.views, samples, rngs)
        except DecodeError as error:
            return _unreadable(task.name, error)
        except UserError as error:
            return error
        first = self.rank * (task.batch_size // self.world)
        batch.key_B = sample_keys(self.seed, step, first, len(samples))
        return batch


class RotatingLoader:
    """Iterates the batches of one rank from `start_step` to `stop_step`, ahead of time in `workers` processes.

    Args:
        tasks: the tasks; batch sizes are over all ranks.
        schedule: `at(step)` gives (task name, visit).
        sources: task name -> FolderSource.
        collator: makes the batches.
        seed: of the order, the captions, the dropped tokens and the samples' keys.
        rank, world: this rank's share of every batch.
        workers: processes; 0 prepares each batch when it is asked for.
        prefetch: batches that each worker prepares ahead.
        pin_memory: page-locked batches, for a GPU; ignored without one.
        timeout_s: how long to wait for a batch before giving up; 0 waits for ever.
        cache_mb: decoded media that each worker keeps, in MiB.

    `wait_seconds` is the time that the last batch was waited for. Raises UserError for a batch size that the ranks cannot
    share, a media file that cannot be decoded, a worker that died and a wait that took too long.
    """

    def __init__(self, tasks: list[Task], schedule, sources: dict[str, FolderSource], collator: Collator, *, seed: int,
                 rank: int = 0, world: int = 1, start_step: int = 0, stop_step: int, workers: int = 1, prefetch: int = 2,
                 pin_memory: bool = False, timeout_s: float = 300.0, cache_mb: float = 256.0):  # fmt: skip
        for task in tasks:
            if task.batch_size % world:
                raise UserError(f"task {task.name}: the batch cannot be shared by {world} ranks", got=task.batch_size,
                                allowed=f"a multiple of {world}")  # fmt: skip
        self.batches = StepBatches(tasks, schedule, sources, collator, seed=seed, rank=rank, world=world, cache_mb=cache_mb)
        self.step, self.stop_step, self.timeout_s = start_step, stop_step, timeout_s
        self.wait_seconds = 0.0
        # fork starts at once and shares the rows; the workers touch neither the GPU nor the process group.
        method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
        self._settings = dict(num_workers=workers, pin_memory=pin_memory and torch.cuda.is_available())
        if workers:
            look_s = min(_LOOK_S, timeout_s or _LOOK_S)
            self._settings |= dict(prefetch_factor=prefetch, timeout=look_s, worker_init_fn=_prepare_worker,
                                   multiprocessing_context=multiprocessing.get_context(method))  # fmt: skip
        self._iterator = None

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
        self._iterator = None

    def _start(self):
        """Start the workers. torch's handler for a dying worker is taken off again: it would raise in the middle of whatever
        the training is doing; `_wait` finds a dead worker at its next look."""
        handler = signal.getsignal(signal.SIGCHLD)  # None: set outside Python, and not ours to set again
        steps = range(self.step, self.stop_step)
        iterator = iter(DataLoader(self.batches, batch_size=None, sampler=steps, collate_fn=_as_it_is, **self._settings))
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
            return batch


def evaluation_batches(source: FolderSource, collator: Collator, views: Views, *, batch_size: int, rank: int = 0,
                       world: int = 1, name: str = "evaluation", cache: MediaCache | None = None) -> Iterator[Batch]:  # fmt: skip
    """The whole split in order, in equally many batches of `batch_size` rows on every rank, without any randomness.

    The last batches are filled up with the last row. `targets["index"]`, int64 [B], is the row; `targets["valid"]`, bool
    [B], is False for such a repetition. Raises UserError for a media file that cannot be decoded.
    """
    stride = batch_size * world
    for start in range(rank * batch_size, -(-len(source) // stride) * stride, stride):
        places = torch.arange(start, start + batch_size)
        index = places.clamp(max=len(source) - 1)
        try:
            batch = collator(name, views, [decode(source, int(row), views, None, cache) for row in index])
        except DecodeError as error:
            raise _unreadable(name, error) from error
        batch.targets |= {"index": index, "valid": places < len(source)}
        yield batch


def _as_it_is(batch):
    return batch


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


def _unreadable(task: str, error: DecodeError) -> UserError:
    return UserError(f"{task}: a file cannot be decoded", got=str(error), fix="repair it, or take its row out of metadata.jsonl")


def _no_batch(step: int, reason: str) -> UserError:
    fix = "often memory: fewer data.workers, a smaller data.cache_mb, more /dev/shm; or slow storage: a larger data.timeout_s"
    return UserError(f"the loader gave no batch for step {step}", got=reason, fix=fix)
