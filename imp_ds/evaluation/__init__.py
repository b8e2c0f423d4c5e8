"""Evaluation, exact over the whole split: every modality against text by zero-shot classification and retrieval, and text by its
hidden words; captions against those of the corpus; and what evaluators of other packages measure.

An evaluator is one file (`imp_ds.evaluation.evaluator`); what it measures are `Metric`s with flat names, such as
zero_shot/image/top1.
"""

import json
from collections.abc import Collection
from pathlib import Path

import torch

from imp_ds.errors import UserError
from imp_ds.evaluation.evaluator import Evaluator, Projection, register_evaluator
from imp_ds.evaluation.metric import ACCURACY, RETRIEVAL, Metric, Panel, Shown, by_name, checked
from imp_ds.evaluation.missing_splits import check_evaluations, has_sources, serving
from imp_ds.evaluation.split import CachedBatches, Report, Split
from imp_ds.evaluation_record import Evaluation
from imp_ds.registry import EVALUATORS
from imp_ds.written_files import write_result

__all__ = [
    "ACCURACY", "CachedBatches", "Evaluator", "Metric", "Panel", "Projection", "RETRIEVAL", "Shown", "Split", "build_evaluators",
    "evaluate", "expert_usage", "register_evaluator", "by_name",
    "write_lines",
]  # fmt: skip


def build_evaluators(
    run, processor, split: str, *, batch_size: int = 64, heads_of: Collection[str] | None = None, report: Report | None = None
) -> list[Evaluator]:
    """The evaluators of `run.evaluations` on a split ("train", "validation", "test") of the corpus at `run.data.root`, and those
    of each task whose sources have that split; of the tasks named in `heads_of` alone, where it is given.

    `batch_size` is that of each rank; `report` is called with (what is evaluated, rows read, rows of the split). Raises UserError
    when the corpus or its class names are missing or unusable.
    """
    check_evaluations(run, split)
    read, found = Split(run, processor, split, batch_size, report), []
    for record in run.evaluations:
        found += [read.evaluator(kind, record) for kind in _kinds(run, record)]
    for task in run.tasks if heads_of is None else map(run.task, heads_of):
        if (kinds := serving(run, task)) and has_sources(run, task, split):
            found += [evaluator for kind in kinds for evaluator in kind.build_for_task(read, task)]
    return found


def _kinds(run, record: Evaluation) -> list[str]:
    """The evaluators of an evaluation. Raises UserError where none can measure it."""
    family, fitting = run.model.family, [kind for kind in EVALUATORS if EVALUATORS[kind].measures(run)]
    if record.evaluator is None:
        if kinds := [kind for kind in fitting if EVALUATORS[kind].serves(run, record)]:
            return kinds
        fix = f"name one: --set evaluations.{record.name}.evaluator=NAME"
        raise UserError(f"evaluation {record.name}: no evaluator of the family {family} measures it by itself", fix=fix)
    if record.evaluator not in fitting:
        of = f"models of the family {EVALUATORS[record.evaluator].family}"
        raise UserError(f"evaluation {record.name}: the evaluator {record.evaluator} measures {of}", got=family, allowed=of)
    return [record.evaluator]


def evaluate(model, evaluators: list[Evaluator]) -> list[Metric]:
    """All that the evaluators measure. Every rank calls this and gets the same; the model's mode is restored.

    model: with its heads, or without where no evaluator reads them.

    Gradients are off by no_grad, not inference_mode: what an engine keeps from a forward (ZeRO 3 keeps small parameters
    gathered) must stay usable in training.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            encoder = getattr(model, "base_model", model)  # of a model of transformers, the one below its heads
            found = (checked(metric, e.kind) for e in evaluators for metric in e.run(model if e.reads_heads else encoder))
            return list({metric.name: metric for metric in found}.values())
    finally:
        model.train(training)


def write_lines(path: Path, evaluators: list[Evaluator]) -> int:
    """Write what evaluators keep one by one, such as answers, as JSON lines with the name of the evaluation; returns how many
    there are. Where there are none, no file is written. Raises UserError where it cannot be written."""
    lines = [{"evaluation": evaluator.record.name} | line for evaluator in evaluators for line in evaluator.lines()]
    if lines:
        write_result(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return len(lines)


def expert_usage(evaluators) -> dict[str, list[list[float]]]:
    """Share of each expert in each MoE layer over the last run, {evaluation name or "text": [layer][expert]}; {} when dense."""
    usage, text = {}, []
    for evaluator in (found for found in evaluators if found.usage):
        own = evaluator.usage.get(evaluator.record.modality)
        if own:
            usage[evaluator.record.name] = own
        if evaluator.usage.get("text"):
            text.append(torch.tensor(evaluator.usage["text"]))
    if text:
        usage["text"] = torch.stack(text).mean(0).tolist()
    return usage
