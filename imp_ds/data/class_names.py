"""The names of a task's classes, where they are those of the data: among which a likelihood objective looks for its answer, and
what the classes of a classification head are called."""

from imp_ds.data.samples import Reader
from imp_ds.errors import UserError
from imp_ds.tasks import Task


def with_class_names(run, readers: dict[str, list[Reader]]):
    """A copy of `run` (a RunConfig) whose tasks list the names of their candidates, which "label_names" leaves to the data, and
    those of the classes that they tell apart, as far as their sources name any.

    A run is so complete without its data: what is trained is what the names say. Raises UserError where a likelihood task's
    source has no class names, the sources of a task have others, or they are not as many as num_classes.
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
    return task.model_copy(update={"objectives": [_with_names(task, objective, names) for objective in task.objectives]})


def _common_names(task: Task, readers: list[Reader]) -> list[str]:
    for reader in readers:
        if reader.class_names != readers[0].class_names:
            raise UserError(
                f"task {task.name}: its sources have different classes", got=f"{reader.name} and {readers[0].name}",
                fix="set source.label_names of each to one list of names, of which source.label holds the names",
            )  # fmt: skip
    return readers[0].class_names


def _with_names(task: Task, objective, names: list[str]):
    if _left_open(objective):
        return objective.model_copy(update={"candidates": names})
    if not _nameless(objective):
        return objective
    if len(names) != objective.num_classes:
        raise UserError(
            f"task {task.name}: the head has not as many classes as its source names",
            got=f"num_classes = {objective.num_classes}, and {len(names)} class names: {', '.join(names[:5])}"
            + (", ..." if len(names) > 5 else ""),
            fix=f"set num_classes to {len(names)}, or source.label_names to the names that are meant",
        )  # fmt: skip
    return objective.model_copy(update={"names": names})


def _left_open(objective) -> bool:
    return objective.kind == "likelihood" and objective.candidates == "label_names"


def _nameless(objective) -> bool:
    return objective.kind == "classification" and not objective.names
