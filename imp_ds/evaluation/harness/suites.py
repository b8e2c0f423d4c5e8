"""Running mteb on an exported model: a benchmark, a task, or tasks of one's own evaluations, and what came of it."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from imp_ds.errors import UserError
from imp_ds.evaluation.harness.mteb_model import INSTALL, MtebModel
from imp_ds.evaluation.harness.own_tasks import has_zero_shot, zero_shot_task
from imp_ds.evaluation.split import Split
from imp_ds.overrides import nearest

OWN = "own"
Report = Callable[[str, int, int], None]


class TaskScore(NamedTuple):
    """A task of mteb: its main score, or why there is none."""

    task: str
    main_score: str
    value: float | None
    reason: str = ""


def load_mteb():
    """The module. Raises UserError, with how to install it, where it is missing."""
    try:
        import mteb
    except ImportError as error:
        raise UserError("the suites of mteb need mteb", got=error, fix=INSTALL) from None
    logging.getLogger("mteb").setLevel(logging.ERROR)  # a task that fails is reported once, here
    return mteb


def named_tasks(name: str) -> list:
    """The tasks of a benchmark of mteb, such as "MIEB(lite)", or the one of that name. Raises UserError for another name."""
    mteb = load_mteb()
    benchmarks = [benchmark.name for benchmark in mteb.get_benchmarks()]
    if name in benchmarks:
        return list(mteb.get_benchmark(name).tasks)
    try:
        return [mteb.get_task(name)]
    except (KeyError, ValueError):
        allowed = f"{OWN} (the evaluations of the recipe), the name of a task, or of a benchmark: {nearest(name, benchmarks)}"
        raise UserError("mteb has no such benchmark or task", got=name, allowed=allowed) from None


def run_named(model: MtebModel, name: str, folder: Path, *, batch_size: int, report: Report | None = None) -> list[TaskScore]:
    """The scores of a benchmark's tasks, in its order. What mteb has measured lies in `folder`, and is not measured again."""
    tasks, kinds, found = named_tasks(name), set(model.mteb_model_meta.modalities), []
    for number, task in enumerate(tasks):
        lacks = set(task.metadata.modalities) - kinds
        if lacks:
            found.append(_skipped(task, f"the model has no {', '.join(sorted(lacks))}"))
        else:
            found.append(_score(model, task, folder, batch_size))
        if report is not None:
            report(f"mteb {name}", number + 1, len(tasks))
    return found


def run_own(model: MtebModel, split: Split, folder: Path, *, batch_size: int, report: Report | None = None) -> list[TaskScore]:
    """The scores of the tasks that are made of the evaluations of the split's run. Raises UserError where none can be made."""
    load_mteb()
    records = [record for record in split.run.evaluations if has_zero_shot(record)]
    if not records:
        allowed = "evaluations of images, videos or audio with classes and labels"
        raise UserError("no task of mteb can be made of the evaluations", got=_names(split.run.evaluations), allowed=allowed)
    found = []
    for number, record in enumerate(records):
        task, prompts = zero_shot_task(split, record)
        found.append(_score(model.seen_as(record.views, prompts, record.task), task, None, batch_size))
        if report is not None:
            report("mteb own", number + 1, len(records))
    return found


def _score(model: MtebModel, task, folder: Path | None, batch_size: int) -> TaskScore:
    mteb = load_mteb()
    found = mteb.evaluate(
        model, [task], cache=None if folder is None else mteb.ResultCache(folder), encode_kwargs={"batch_size": batch_size},
        raise_error=False, show_progress_bar=False,
    )  # fmt: skip
    if found.exceptions:
        return _skipped(task, found.exceptions[0].exception.strip().splitlines()[-1])
    return TaskScore(task.metadata.name, task.metadata.main_score, float(found.task_results[0].get_score()))


def _skipped(task, reason: str) -> TaskScore:
    return TaskScore(task.metadata.name, task.metadata.main_score, None, reason)


def _names(evaluations) -> str:
    return ", ".join(record.name for record in evaluations) or "no evaluations"
