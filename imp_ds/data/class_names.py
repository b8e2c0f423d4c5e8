"""The names of a task's classes, where they are those of the data: among which a likelihood objective looks for its answer, and
what the classes of a classification head are called."""

from imp_ds.data.samples import Reader
from imp_ds.data.sources import labels
from imp_ds.data.subset import spread_over
from imp_ds.errors import UserError
from imp_ds.tasks import Task

_LOOKED_AT = 20_000  # labels of a source that are looked at before a run starts


def check_labels(run, readers: dict[str, list[Reader]]) -> None:
    """Raise UserError, with the source and the class, where a task's source has classes that its heads do not.

    What is known beforehand is looked at: the class names of the source, or else some of its labels. Another label that fits no
    class is met later, and leaves its sample out.
    """
    for task in run.tasks:
        for reader in readers[task.name] if task.classes is not None else []:
            if reader.class_names is not None:
                found, name = len(reader.class_names) - 1, f" ({reader.class_names[-1]})"
            else:
                found, name = int(max(labels(spread_over(reader, min(len(reader), _LOOKED_AT))), default=-1)), ""
            if found >= task.classes:
                raise UserError(
                    f"task {task.name}: {reader.name} has more classes than the head", got=f"class {found}{name}, counted from 0",
                    allowed=f"0 to {task.classes - 1}: num_classes = {task.classes}",
                    fix=f"set num_classes to {found + 1} or more, or repair the labels",
                )  # fmt: skip


def with_class_names(run, readers: dict[str, list[Reader]]):
    """A copy of `run` (a RunConfig) whose tasks list the names of their candidates, which "label_names" leaves to the data, and
    those of the classes that they tell apart, where their sources name as many.

    A run is so complete without its data: what is trained is what the names say. Raises UserError where a likelihood task's
    source has no class names, or the sources of a task have others.
    """
    return run.model_copy(update={"tasks": [_named(task, readers[task.name]) for task in run.tasks]})


def _named(task: Task, readers: list[Reader]) -> Task:
    if any(_left_open(objective) for objective in task.objectives):
        for reader in readers:
            if reader.class_names is None:
                raise UserError(
                    f"task {task.name}: there are no class names to choose among", got=f"{reader.name} names no classes",
                    fix="set source.label_names to the names in the order of the labels, or to a JSON file with them",
                )  # fmt: skip
    elif not any(_nameless(objective) for objective in task.objectives) or any(r.class_names is None for r in readers):
        return task
    names = _common_names(task, readers)
    return task.model_copy(update={"objectives": [_with_names(objective, names) for objective in task.objectives]})


def _common_names(task: Task, readers: list[Reader]) -> list[str]:
    for reader in readers:
        if reader.class_names != readers[0].class_names:
            raise UserError(
                f"task {task.name}: its sources have different classes", got=f"{reader.name} and {readers[0].name}",
                fix="set source.label_names of each to one list of names, of which source.label holds the names",
            )  # fmt: skip
    return readers[0].class_names


def _with_names(objective, names: list[str]):
    if _left_open(objective):
        return objective.model_copy(update={"candidates": names})
    if _nameless(objective) and len(names) == objective.num_classes:
        return objective.model_copy(update={"names": names})
    return objective


def _left_open(objective) -> bool:
    return objective.kind == "likelihood" and objective.candidates == "label_names"


def _nameless(objective) -> bool:
    return objective.kind == "classification" and not objective.names
