"""The classification heads of tasks: which there are, and how they count the classes of a source."""

import torch

from imp_ds.objectives.objective import ObjectiveRecord
from imp_ds.tasks import Task


def heads(task: Task) -> list[tuple[int, ObjectiveRecord, str]]:
    """The classification heads of a task: place among its objectives, record, and name in the results: the task's, and behind it
    the modality's where the task has several."""
    found = [(place, o) for place, o in enumerate(task.objectives) if o.has_own_head]
    return [(place, o, task.name if len(found) == 1 else f"{task.name}_{o.modality}_{place}") for place, o in found]


def labels_of_head(label_R: torch.Tensor, source_names: list[str] | None, head_names: list[str]) -> torch.Tensor:
    """The labels of a source's rows, int64 [R], as a head counts its classes: by name where some names agree, since another
    source may have them in another order, or some of them; -1 for a class that the head does not have. Otherwise as they are.
    """
    places = {name: place for place, name in enumerate(head_names)}
    if source_names is None or source_names == head_names or not places.keys() & set(source_names):
        return label_R
    place_K = torch.tensor([places.get(name, -1) for name in source_names])
    known_R = (label_R >= 0) & (label_R < len(source_names))
    return torch.where(known_R, place_K[label_R.clamp(0, len(source_names) - 1)], -1)
