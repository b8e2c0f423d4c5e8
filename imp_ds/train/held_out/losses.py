"""The loss of each task on its validation split, as training computes it, but in evaluation mode: nothing is dropped, no noise.

Of each task the first batches of a fixed order are taken: the same samples at each measurement, on any number of ranks, which
share each batch as training does. Where samples are compared, those of a whole batch are, on all ranks.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist

from imp_ds.data.loading.collation import Collator
from imp_ds.data.loading.step_batches import StepBatches
from imp_ds.errors import UserError
from imp_ds.evaluation import CachedBatches, Metric, Shown
from imp_ds.evaluation.missing_splits import has_sources
from imp_ds.modalities.views import Augmentation, Views
from imp_ds.parallel.groups import on_main, rank, world_size
from imp_ds.parallel.watchdog import Watchdog
from imp_ds.tasks import Batch, Task
from imp_ds.train.engine.engine import Engine
from imp_ds.train.schedule import Rotation
from imp_ds.train.start import open_readers

_CACHE_MB = 256  # of the batches of all tasks together
_SHOWN = Shown("validation loss")


class ValidationLosses:
    """`measure(engine)` yields validation/{task}/loss of each task whose sources all have a validation split, in nats.

    It is the mean over the samples (or over the supervised tokens, where training takes that) of at most
    `train.validation_batches` batches of `batch_size` samples, which a split that is smaller repeats, in the task's first view.
    What does not fill a batch at the end of a split is left out. Raises UserError for a source that cannot be read.

    without: the tasks that are not measured, since a source of theirs has no such split.
    """

    def __init__(self, run, processor, watchdog: Watchdog | None = None):
        found = {task.name: has_sources(run, task, "validation") for task in run.tasks} if run.train.validation_batches else {}
        self.without = [name for name, there in found.items() if not there]
        self._tasks = {task.name: _undrawn(task) for task in run.tasks if found.get(task.name)}
        self._batches: dict[str, CachedBatches] = {}
        if not self._tasks:
            return
        readers = open_readers(run.model_copy(update={"tasks": list(self._tasks.values())}), watchdog, "validation")
        for task in self._tasks.values():
            batches = StepBatches(
                [task], Rotation({task.name: 1}), readers, Collator(processor), seed=run.data.seed, rank=rank(),
                world=world_size(), window=run.data.window, cache_mb=0, decoding=run.data.decoding,
            )  # fmt: skip
            rows = sum(map(len, readers[task.name]))
            count = min(run.train.validation_batches, max(1, rows // task.batch_size))
            make = lambda batches=batches, count=count: _made(batches, count)  # noqa: E731
            self._batches[task.name] = CachedBatches(make, _CACHE_MB // len(self._tasks))

    def measure(self, engine: Engine) -> Iterator[Metric]:
        """All ranks call this together, and get the same values; the mode of the model is restored."""
        model = engine.model
        training = model.training
        model.eval()
        try:
            for name, batches in self._batches.items():
                loss = self._loss(engine, self._tasks[name], batches)
                yield Metric(f"validation/{name}/loss", loss, "nats", "lower", _SHOWN)
        finally:
            model.train(training)

    @staticmethod
    def _loss(engine: Engine, task: Task, batches: CachedBatches) -> float:
        """The mean over the batches, each by its weight."""
        sums_2 = torch.zeros(2, dtype=torch.float64, device=engine.device)
        with torch.no_grad():
            for batch in batches:
                batch = batch.to(engine.device)
                loss, weight = engine.measure(batch, task.micro_batches)
                sums_2 += torch.stack([loss.double() * weight, weight.double()])
        if world_size() > 1:
            dist.all_reduce(sums_2)
        return float(sums_2[0] / sums_2[1])


def _made(batches: StepBatches, count: int) -> Iterator[Batch]:
    """This rank's shares of the first batches; a rank that cannot make its own reports it to the others."""
    for number in range(count):
        batch = on_main(lambda number=number: _read(batches, number), "a batch cannot be made", every_rank=True)
        batch.key_B = None  # nothing is drawn in the model
        yield batch


def _read(batches: StepBatches, number: int) -> Batch:
    batch = batches[number]
    if isinstance(batch, UserError):
        raise batch
    return batch


def _undrawn(task: Task) -> Task:
    """The task in its first view, without dropped tokens and augmentation, in batches that the ranks can share."""
    kept = {name: _whole(getattr(task.views, name)) for name in task.views.names()}
    size = max(task.batch_size // world_size(), 1) * world_size()
    changed = {"views": Views(**kept), "additional_views": [], "augment": Augmentation(), "drop_last": False, "batch_size": size}
    return task.model_copy(update=changed)


def _whole(view):
    return view.model_copy(update={"drop_rate": 0.0}) if hasattr(view, "drop_rate") else view
