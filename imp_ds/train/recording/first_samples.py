"""What the model is fed at the start: a few samples of each task, by the loader's own code, for people to look at."""

import numpy as np

from imp_ds.data.loading.step_batches import StepBatches
from imp_ds.errors import UserError
from imp_ds.modalities.modality import get_modality
from imp_ds.modalities.views import Views
from imp_ds.tasks import Batch, Task

_HORIZON = 10_000  # steps in which a task's first occurrence is looked for


def first_samples(batches: StepBatches, most: int) -> tuple[dict[str, Batch], dict[str, list[tuple[np.ndarray, int]]]]:
    """Of each task the first `most` samples of its first occurrence, and of those with audio one waveform, as (samples, rate).

    A task without an occurrence in the first steps is left out. Raises UserError for a sample that cannot be read.
    """
    samples, waveforms = {}, {}
    for name, step in first_occurrences(batches).items():
        batch = batches.first_of(step, most)
        if isinstance(batch, UserError):
            raise batch
        samples[name] = batch
        task = batches.tasks[name]
        views = task.all_views[batch.report.view]
        shown = shown_parts(batches, task, views, step, most)
        heard = [[value for kind, value in parts if kind == "waveform"] for parts in shown]
        if any(heard):
            waveforms[name] = [waveform for of_sample in heard for waveform in of_sample[:1]]
    return samples, waveforms


def shown_parts(batches: StepBatches, task: Task, views: Views, step: int, most: int) -> list[list[tuple[str, object]]]:
    """Of each of the first samples of a step, decoded anew, its `Modality.parts`; nothing where no modality has some."""
    names = [name for name in views.names() if get_modality(name).shows_samples]
    if not names:
        return []
    samples = batches.usable(task, views)
    samples.wanted = samples.wanted._replace(features=None)  # the media themselves
    usable = samples.at(batches.sample_indices(step)[:most])
    parts = lambda sample, name: get_modality(name).parts(sample[name], getattr(views, name))  # noqa: E731
    return [[part for name in names for part in parts(one.sample, name)] for one in usable]


def first_occurrences(batches: StepBatches) -> dict[str, int]:
    """The step of each task's first occurrence, in the order of the tasks: all ranks have the same order, whatever their steps.
    A task without one in the first steps is left out."""
    steps = {}
    for step in range(_HORIZON):
        steps.setdefault(batches.schedule.at(step).name, step)
        if len(steps) == len(batches.tasks):
            break
    return {name: steps[name] for name in batches.tasks if name in steps}
