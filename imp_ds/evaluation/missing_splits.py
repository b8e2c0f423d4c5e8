"""Which splits a run's sources have, and so what is scored on each; what is not is reported in a line."""

from collections.abc import Collection

from imp_ds.data.sources import has_split
from imp_ds.errors import UserError
from imp_ds.evaluation.evaluator import Evaluator
from imp_ds.registry import EVALUATORS
from imp_ds.tasks import Source, Task

_SPLITS = ("train", "validation", "test")


def serving(run, task: Task) -> list[type[Evaluator]]:
    """The evaluators that score a task itself, such as its heads."""
    return [kind for kind in map(EVALUATORS.__getitem__, EVALUATORS) if kind.measures(run) and kind.serves_task(task)]


def has_sources(run, task: Task, split: str) -> bool:
    """Whether all sources of a task have a split."""
    return all(has_split(run.data.root, source, split) for source in task.sources)


def unscored(run, split: str, heads_of: Collection[str] | None = None) -> list[str]:
    """The tasks that would be scored on a split if their sources had it; of those in `heads_of` alone, where it is given."""
    tasks = run.tasks if heads_of is None else map(run.task, heads_of)
    return [task.name for task in tasks if serving(run, task) and not has_sources(run, task, split)]


def unscored_note(names: list[str], split: str) -> str | None:
    """A line on what is not scored on a split; None where nothing is missing."""
    if not names:
        return None
    why = f"its source has no {split} split" if len(names) == 1 else f"their sources have no {split} split"
    return f"not scored on {split}: {', '.join(names)} ({why})"


def check_evaluations(run, split: str) -> None:
    """Raise UserError, naming the evaluation, where one's source has other splits than the one that is to be measured."""
    for record in run.evaluations:
        there = [name for name in _SPLITS if has_split(run.data.root, record.source, name)]
        if there and split not in there:
            raise UserError(
                f"evaluation {record.name}: its source has no split {split}", got=", ".join(there),
                fix=f'source.splits={{"{split}": "FILE"}}, source.holdout={{"{split}": 0.1}} of the task too, or no evaluation',
            )  # fmt: skip


def final_split(run) -> tuple[str, str | None]:
    """The split of a run's final scores, and what is not scored on "test": that is where they come from when all that was scored
    on "validation" has it."""
    held_out = [task for task in run.tasks if serving(run, task) and has_sources(run, task, "validation")]
    read: list[Source] = [source for task in held_out for source in task.sources]
    read += [record.source for record in run.evaluations]
    without = [record.name for record in run.evaluations if not has_split(run.data.root, record.source, "test")]
    line = unscored_note(list(dict.fromkeys(without + unscored(run, "test"))), "test")
    if all(has_split(run.data.root, source, "test") for source in read):
        return "test", line
    return "validation", f"{line}; the final scores are those of validation"
