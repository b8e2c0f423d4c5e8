"""The batch of a step: a pure function of (seed, step, rank), computed from nothing that was loaded before.

A run that is resumed, has more ranks or other workers sees the same samples. A batch may span two epochs; nothing is left over
unless a task asks for it (`Task.drop_last`).
"""

import zlib
from collections.abc import Callable

import numpy as np

from imp_ds.data.loading.collation import Collator
from imp_ds.data.order.order import GroupedOrder, SampleIndex, SourceOrder, TaskOrder
from imp_ds.data.order.usable_samples import UsableSamples
from imp_ds.data.reader import Reader
from imp_ds.errors import UserError
from imp_ds.modalities.decoding_settings import DEFAULTS, DecodingSettings
from imp_ds.modalities.media_cache import MediaCache
from imp_ds.modalities.modality import Wanted
from imp_ds.modalities.views import Views
from imp_ds.randomness import sample_keys
from imp_ds.tasks import Batch, Task


class StepBatches:
    """step -> Batch, for one rank. A failure that the user is to read comes back as a value: raised in a worker, it
    would reach the main process wrapped in the worker's traceback.

    Args:
        tasks: the tasks; batch sizes are over all ranks.
        schedule: `at(step)` gives (task name, number of its occurrence).
        readers: task name -> the readers of its sources.
        collator: makes the batches.
        seed: of the order, the views, what training draws, and the samples' keys.
        rank, world: this rank's share of every batch.
        first_key: what the samples' numbers begin with in their keys; ranks with batches of their own have numbers of their own.
        window: samples that are shuffled among each other.
        cache_mb: decoded media that each process keeps, in MiB.
        decoding: how large what is decoded may be, and the like.
        lengths: task name -> of each of its sources the length of a row by its number, for `Task.group_by_length`; without them
            the order of the task stays as it is.

    Raises UserError for a batch size that the ranks cannot share, and a source smaller than a batch that must be full.
    """

    def __init__(self, tasks: list[Task], schedule, readers: dict[str, list[Reader]], collator: Collator, *, seed: int,
                 rank: int = 0, world: int = 1, first_key: int = 0, window: int = 65536, cache_mb: float = 256.0,
                 decoding: DecodingSettings = DEFAULTS, lengths: dict[str, list] | None = None):  # fmt: skip
        self.tasks = {task.name: task for task in tasks}
        self.schedule, self.readers, self.collator = schedule, readers, collator
        self.seed, self.rank, self.world, self.first_key, self.decoding = seed, rank, world, first_key, decoding
        self._cache = MediaCache(cache_mb)
        lengths = lengths or {}
        self.orders = {task.name: _order(task, readers[task.name], seed, window, lengths.get(task.name)) for task in tasks}
        for task in tasks:
            if task.batch_size % world:
                raise UserError(f"task {task.name}: the batch cannot be shared by {world} ranks", got=task.batch_size,
                                allowed=f"a multiple of {world}")  # fmt: skip

    def sample_indices(self, step: int) -> list[SampleIndex]:
        """The index of each sample of this rank at a step, before any is found to be unusable."""
        name, occurrence = self.schedule.at(step)
        task = self.tasks[name]
        local = task.batch_size // self.world
        first = occurrence * task.batch_size + self.rank * local
        return self.orders[name].at(range(first, first + local))

    def __getitem__(self, step: int) -> Batch | UserError:
        return self.first_of(step)

    def first_of(
        self, step: int, most: int | None = None, view: int | None = None, empty: Callable = np.empty
    ) -> Batch | UserError:
        """The batch of a step, or as much of it as its first `most` samples, in its own view or in the one of that number.
        `empty` makes its large arrays, as `numpy.empty` does."""
        name, occurrence = self.schedule.at(step)
        task = self.tasks[name]
        view = task.draw_view(self.seed, occurrence) if view is None else view
        views = task.all_views[view]
        usable = self.usable(task, views)
        try:
            samples, rngs, keys = zip(*usable.at(self.sample_indices(step)[:most]))
            batch = self.collator(
                name, views, list(samples), list(rngs), augment=task.augment,
                text=task.needs.text, empty=empty,
            )  # fmt: skip
        except UserError as error:
            return error
        first = self.first_key + self.rank * (task.batch_size // self.world)
        batch.key_B = sample_keys(self.seed, step, first, len(samples))
        batch.report = batch.report._replace(view=view, keys=keys, rejected=tuple(usable.rejected))
        return batch

    def usable(self, task: Task, views: Views) -> UsableSamples:
        """The samples of a task, as these views see them."""
        own = self.collator
        wanted = Wanted.of(task, self.decoding, own.has_tokens, own.conversation_tokens, own.features)
        return UsableSamples(task, views, self.readers[task.name], self.seed, self._cache, wanted)


def _order(task: Task, readers: list[Reader], seed: int, window: int, lengths: list | None) -> TaskOrder | GroupedOrder:
    stream = [seed, zlib.crc32(task.name.encode())]
    multiple = task.batch_size if task.drop_last else 1
    for reader in readers:
        if len(reader) < multiple:
            raise UserError(
                f"task {task.name}: {reader.name} has less than one batch", got=f"{len(reader)} samples, drop_last = true",
                allowed=f"at least batch_size = {task.batch_size}", fix=f"--set tasks.{task.name}.drop_last=false",
            )  # fmt: skip
    orders = [SourceOrder(reader.shard_rows, [*stream, number], window, multiple) for number, reader in enumerate(readers)]
    order = TaskOrder(orders, [source.weight for source in task.sources], stream)
    return order if lengths is None else GroupedOrder(order, lengths, task.batch_size, task.group_by_length, stream)
