"""What the model is fed at the start: a few samples of each task, by the loader's own code, for people to look at."""

import numpy as np

from imp_ds.data.loading.step_batches import StepBatches
from imp_ds.errors import UserError
from imp_ds.modalities.modality import get_modality
from imp_ds.modalities.views import Views
from imp_ds.tasks import Batch, Task

_HORIZON = 10_000  # steps in which a task's first occurrence is looked for


def first_samples(batches: StepBatches, most: int) -> tuple[dict[str, Batch], dict[str, list[tuple[np.ndarray, int]]]]:
    """Of each task the first `most` samples of its first occurrence, and their waveforms as (samples, rate) where it has audio.

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
        if found := waveforms_of(batches, task, views, step, most):
            waveforms[name] = found
    return samples, waveforms


def waveforms_of(batches: StepBatches, task: Task, views: Views, step: int, most: int) -> list[tuple[np.ndarray, int]]:
    """The audio of the first samples of a step: (samples in [-1, 1], rate) each, decoded anew; none where nothing can."""
    audible = [name for name in views.names() if get_modality(name).is_audible]
    if not audible:
        return []
    usable = batches.usable(task, views).at(batches.sample_indices(step)[:most])
    return [get_modality(audible[0]).waveform(one.sample[audible[0]]) for one in usable]


def first_occurrences(batches: StepBatches) -> dict[str, int]:
    """The step of each task's first occurrence, in the order of the tasks: all ranks have the same order, whatever their steps.
    A task without one in the first steps is left out."""
    steps = {}
    for step in range(_HORIZON):
        steps.setdefault(batches.schedule.at(step).name, step)
        if len(steps) == len(batches.tasks):
            break
    return {name: steps[name] for name in batches.tasks if name in steps}
