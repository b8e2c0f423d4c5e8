"""The suites of `imp_ds bench`: which evaluations each makes of a run's, and how it is measured.

A suite of one's own evaluations is what `imp_ds eval` measures, each time a part of it or by another evaluator; those of mteb are
run by rank 0, the others by all ranks together.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from imp_ds.config import RunConfig
from imp_ds.data.sources import has_split
from imp_ds.errors import UserError
from imp_ds.evaluation import build_evaluators, evaluate
from imp_ds.evaluation.metric import Metric, Shown
from imp_ds.evaluation.split import Report, Split
from imp_ds.evaluation_record import Evaluation
from imp_ds.overrides import nearest
from imp_ds.parallel.groups import is_main, on_main

MTEB = "mteb:"
PROBED = {"methods": ["knn", "least_squares", "clip"], "per_class": [1, 5, 10, 25, "all"]}
FITTED = {"methods": ["logistic"], "per_class": ["all"]}
_TRAIN = "train"


class Measured(NamedTuple):
    """Metrics, and of what was not measured why, by name."""

    metrics: list[Metric]
    left_out: dict[str, str]


def zero_shot(record: Evaluation) -> Evaluation | None:
    """The evaluation without retrieval; None where it names no classes."""
    if record.evaluator is not None or not (record.classes or record.templates):
        return None
    source = record.source if record.answer_at == "mask" else record.source.model_copy(update={"text": None, "templates": []})
    return record.model_copy(update={"source": source})


def retrieval(record: Evaluation) -> Evaluation | None:
    """The evaluation without classes, by all captions of a row; None where there are none, or the text is what is read."""
    asked = record.answer_at == "mask" or record.modality == "text" or record.captioner is not None
    if record.evaluator is not None or record.source.text is None or asked:
        return None
    captions = "all" if record.target == "text" else "first"
    return record.model_copy(update={"classes": None, "templates": [], "captions": captions})


def probe(record: Evaluation, options: dict = PROBED) -> Evaluation | None:
    """Probes of the same samples; None where they have no labels, are of several modalities together, or are texts that a head is
    asked about."""
    view = getattr(record.views, record.modality, None)
    if record.source.label is None or view is None or record.answer_at == "mask":
        return None
    changes = {"evaluator": "probe", "options": options, "classes": None, "templates": [], "captioner": None}
    return record.model_copy(update=changes)


def logistic(record: Evaluation) -> Evaluation | None:
    """The probe that chooses its penalty among 45 values, so that it takes 46 fits."""
    return probe(record, FITTED)


OWN: dict[str, Callable[[Evaluation], Evaluation | None]] = {
    "zero-shot": zero_shot, "retrieval": retrieval, "probe": probe, "logistic": logistic,
}  # fmt: skip
_PROBES = ("probe", "logistic")


def check_name(name: str) -> str:
    """The name itself. Raises UserError for what is no suite, and for one of mteb where mteb is missing or has no such tasks."""
    if name.startswith(MTEB):
        from imp_ds.evaluation.harness.suites import OWN as OWN_TASKS
        from imp_ds.evaluation.harness.suites import load_mteb, named_tasks

        load_mteb() if name == MTEB + OWN_TASKS else named_tasks(name.removeprefix(MTEB))
    elif name not in OWN:
        known = [*OWN, f"{MTEB}own", f"{MTEB}NAME (a benchmark or a task of mteb)"]
        raise UserError("unknown suite", got=name, allowed=nearest(name, known))
    return name


def suite_run(name: str, run: RunConfig) -> tuple[RunConfig, dict[str, str]]:
    """The run with the evaluations of a suite, and why others are left out, by name. Raises UserError where none is left."""
    found, left_out = [], {}
    for record in run.evaluations:
        made = record if name.startswith(MTEB) else OWN[name](record)
        if made is not None and name in _PROBES and not has_split(run.data.root, record.source, _TRAIN):
            left_out[record.name] = "its source has no split train"
        elif made is not None:
            found.append(made)
    if not found and name in OWN:
        needs = {"zero-shot": "classes or templates", "retrieval": "source.text"}.get(name, "source.label, and a split train")
        names = ", ".join(record.name for record in run.evaluations) or "no evaluations"
        raise UserError(
            f"the suite {name} has nothing to measure", got=names, allowed=f"evaluations with {needs}",
            fix="--recipe RECIPE, whose evaluations are taken",
        )  # fmt: skip
    return run.model_copy(update={"evaluations": found}), left_out


def measure(
    name: str, run: RunConfig, loaded: Callable[[], tuple], folder: Path, cache: Path, split: str, batch_size: int,
    report: Report | None,
) -> Measured:  # fmt: skip
    """What a suite measures; all ranks call it.

    loaded: gives model and processor of the exported folder.
    cache: folder in which mteb keeps the results of tasks.
    """
    if name.startswith(MTEB):
        found = on_main(lambda: _mteb(name, run, folder, cache, split, batch_size, report), f"{name} cannot be measured")
        return found if is_main() else Measured([], {})
    run, left_out = suite_run(name, run)
    model, processor = loaded()
    evaluators = build_evaluators(run, processor, split, batch_size=batch_size, heads_of=(), report=report)
    return Measured(evaluate(model, evaluators), left_out)


def _mteb(name: str, run: RunConfig, folder: Path, cache: Path, split: str, batch_size: int, report: Report | None) -> Measured:
    """By rank 0 alone."""
    from imp_ds.evaluation.harness import MtebModel
    from imp_ds.evaluation.harness.suites import OWN as OWN_TASKS
    from imp_ds.evaluation.harness.suites import run_named, run_own
    from imp_ds.parallel.groups import alone

    with alone():
        model, tasks = MtebModel(folder), name.removeprefix(MTEB)
        if tasks == OWN_TASKS:
            scores = run_own(model, Split(run, model.processor, split, batch_size), cache, batch_size=batch_size, report=report)
        else:
            scores = run_named(model, tasks, cache, batch_size=batch_size, report=report)
    metrics = [
        Metric(f"mteb/{score.task}/{score.main_score}", score.value, "share", "higher", Shown("mteb"))
        for score in scores
        if score.value is not None
    ]
    return Measured(metrics, {score.task: score.reason for score in scores if score.value is None})
