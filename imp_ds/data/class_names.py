"""What the data say of a task's classes: which names are the candidates of a likelihood objective, how many classes a
classification head has, and what they are called."""

from imp_ds.data.corpus import open_corpus
from imp_ds.data.order.subset import spread_over
from imp_ds.data.reader import Reader
from imp_ds.data.sources import labels
from imp_ds.errors import UserError
from imp_ds.tasks import Task

_LOOKED_AT = 20_000  # labels of a source that are looked at before a run starts


def check_labels(run, readers: dict[str, list[Reader]]) -> None:
    """Raise UserError, with the source and the class, where a task's source has classes that its heads do not.

    What is known beforehand is looked at: the class names of the source, or else some of its labels. Another label that fits no
    class is met later, and leaves its sample out.
    """
    for task in run.tasks:
        for reader in readers[task.name] if task.needs.classes is not None else []:
            if reader.class_names is not None:
                found, name = len(reader.class_names) - 1, f" ({reader.class_names[-1]})"
            else:
                found, name = _largest_label(reader), ""
            if found >= task.needs.classes:
                raise UserError(
                    f"task {task.name}: {reader.name} has more classes than the head", got=f"class {found}{name}, counted from 0",
                    allowed=f"0 to {task.needs.classes - 1}: num_classes = {task.needs.classes}",
                    fix=f"set num_classes to {found + 1} or more, or repair the labels",
                )  # fmt: skip


def with_counted_classes(run):
    """`run`, or, where a classification leaves num_classes to the data, `with_class_names` of its training data, which are opened
    for it: for what is done before a run starts. Raises UserError as these."""
    if not any(objective.has_open_size() for task in run.tasks for objective in task.objectives):
        return run
    return with_class_names(run, open_corpus(run))


def with_class_names(run, readers: dict[str, list[Reader]]):
    """A copy of `run` (a RunConfig) whose tasks list the names of their candidates, which "label_names" leaves to the data, and
    those of the classes that they distinguish, where their sources name as many; what has no num_classes has as many as these.

    A run is so complete without its data: what is trained is what the names say. Raises UserError where a task needs class names
    and its source has none, or the sources of a task have others.
    """
    return run.model_copy(update={"tasks": [_named(task, readers[task.name]) for task in run.tasks]})


def _named(task: Task, readers: list[Reader]) -> Task:
    nameless = [reader for reader in readers if reader.class_names is None]
    if nameless and any(objective.has_open_size() for objective in task.objectives):
        raise _no_count(task, nameless[0], readers)
    if nameless and any(objective.wants_class_names() for objective in task.objectives):
        raise UserError(
            f"task {task.name}: there are no class names to choose among", got=f"{nameless[0].name} names no classes",
            fix="set source.label_names to the names in the order of the labels, or to a JSON file with them",
        )  # fmt: skip
    if nameless or all(objective.wants_class_names() is None for objective in task.objectives):
        return task
    names = _common_names(task, readers)
    return task.model_copy(update={"objectives": [objective.with_class_names(names) for objective in task.objectives]})


def _no_count(task: Task, nameless: Reader, readers: list[Reader]) -> UserError:
    count = max(2, 1 + max(map(_largest_label, readers)))
    return UserError(
        f"task {task.name}: how many classes there are is not given", got=f"{nameless.name} has labels that are numbers",
        fix=f"write Classification(..., num_classes={count}), by the largest label that was seen; or set source.label_names",
    )  # fmt: skip


def _largest_label(reader: Reader) -> int:
    """Of the class names, or else of some of the labels; -1 where there is none."""
    if reader.class_names is not None:
        return len(reader.class_names) - 1
    return int(max(labels(spread_over(reader, min(len(reader), _LOOKED_AT))), default=-1))


def _common_names(task: Task, readers: list[Reader]) -> list[str]:
    names = readers[0].class_names
    for reader in readers:
        if reader.class_names != names:
            raise UserError(
                f"task {task.name}: its sources have different classes", got=f"{reader.name} and {readers[0].name}",
                fix="set source.label_names of each to one list of names, of which source.label holds the names",
            )  # fmt: skip
    if len(names) < 2 and any(objective.has_open_size() for objective in task.objectives):
        raise UserError(
            f"task {task.name}: there is nothing to distinguish", got=f"{readers[0].name} has one class: {names[0]}",
            allowed="two classes or more", fix="see source.path, source.label and source.label_names",
        )  # fmt: skip
    return names
