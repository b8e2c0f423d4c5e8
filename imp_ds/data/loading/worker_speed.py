"""How many samples a second one loader worker prepares: the loader's own code, in the loader's order, timed."""

import time

import torch

from imp_ds.data.loading.collation import Collator
from imp_ds.data.loading.step_batches import StepBatches
from imp_ds.data.reader import Reader
from imp_ds.errors import UserError
from imp_ds.tasks import Task

_SAMPLES = 16  # of a batch at most, so that the time is kept
_SECONDS = 2.0


class _OnlyTask:
    """A schedule of one task."""

    def __init__(self, name: str):
        self.name = name

    def at(self, step: int) -> tuple[str, int]:
        return self.name, step


def worker_speed(
    task: Task, readers: list[Reader], collator: Collator, view: int, *, seed: int, window: int, seconds: float = _SECONDS
) -> float | None:
    """Samples a second of a task in one of its views, with nothing kept from earlier reads; None where no sample can be used.

    Reading, decoding, augmentation and collation on one thread of one process, for about `seconds`. Files that were read before
    come from memory: where the corpus is larger than that, the disk adds its own time.
    """
    schedule, own = _OnlyTask(task.name), {task.name: readers}
    batches = StepBatches([task], schedule, own, collator, seed=seed, window=window, cache_mb=0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _timed(batches, view, seconds)
    finally:
        torch.set_num_threads(threads)


def _timed(batches: StepBatches, view: int, seconds: float) -> float | None:
    step, samples, start = 0, 0, 0.0
    while samples == 0 or time.perf_counter() - start < seconds:
        batch = batches.first_of(step, _SAMPLES, view)
        if isinstance(batch, UserError):
            return None
        if step == 0:
            start = time.perf_counter()  # the first one also imports what is needed
        else:
            samples += len(batch.report.keys)
        step += 1
    return samples / (time.perf_counter() - start)
