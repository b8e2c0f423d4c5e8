"""The names among which a likelihood objective looks for its answer, where they are those of the data."""

from imp_ds.data.samples import Reader
from imp_ds.errors import UserError
from imp_ds.tasks import Task


def with_class_names(run, readers: dict[str, list[Reader]]):
    """A copy of `run` (a RunConfig) whose tasks list the names of their candidates, which "label_names" leaves to the data.

    A run is so whole without its data: what is trained is what the names say. Raises UserError where a source has no class
    names, or the sources of a task have others.
    """
    return run.model_copy(update={"tasks": [_named(task, readers[task.name]) for task in run.tasks]})


def _named(task: Task, readers: list[Reader]) -> Task:
    if not any(_left_open(objective) for objective in task.objectives):
        return task
    for reader in readers:
        if reader.class_names is None:
            raise UserError(
                f"task {task.name}: there are no class names to choose among", got=f"{reader.name} names no classes",
                fix="set source.label_names to the names in the order of the labels, or to a JSON file with them",
            )  # fmt: skip
        if reader.class_names != readers[0].class_names:
            raise UserError(
                f"task {task.name}: its sources have different classes", got=f"{reader.name} and {readers[0].name}",
                fix="set source.label_names of each to one list of names, of which source.label holds the names",
            )  # fmt: skip
    names = readers[0].class_names
    objectives = [o.model_copy(update={"candidates": names}) if _left_open(o) else o for o in task.objectives]
    return task.model_copy(update={"objectives": objectives})


def _left_open(objective) -> bool:
    return objective.kind == "likelihood" and objective.candidates == "label_names"
