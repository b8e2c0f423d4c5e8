"""What a rank knows of its batch beside the loss, and what the monitor gets of a step from the means over the ranks."""

from imp_ds.parallel.groups import world_size
from imp_ds.tasks import Batch, Task
from imp_ds.train.recording.interval import StepRecord

_PADDING = "padding/"
_FACTS = ("rejected", "tokens", "wait_seconds", "flops")


def count_tokens(batch: Batch) -> int:
    """Tokens of a rank's batch over all modalities, padding included."""
    return sum(next(iter(inputs.values())).shape[:2].numel() for inputs in batch.inputs.values())


def rank_facts(batch: Batch, wait_seconds: float, flops: float) -> dict[str, float]:
    """Of one rank: samples left out, tokens, seconds that it waited for the batch, model FLOPs, shares of padding."""
    padding = {_PADDING + modality: share for modality, share in batch.report.padding.items()}
    facts = len(batch.report.rejected), count_tokens(batch), wait_seconds, flops
    return dict(zip(_FACTS, facts)) | padding


def step_records(
    tasks: list[Task], mixture: dict[str, float], means: dict[str, dict[str, float]], own: str, reports: dict[str, list], *,
    grad_norm: float, seconds: float,
) -> list[StepRecord]:  # fmt: skip
    """Of each task of a step that took `seconds`.

    Args:
        tasks: of the run.
        mixture: {task of the step: share of the ranks that trained it}.
        means: over those ranks, of the loss, the metrics and `rank_facts`.
        own, reports: this rank's task, and what its routers report; those of the other ranks stay there.
    """
    reports_of = {own: reports}
    return [
        _record(task, mixture[task.name], means[task.name], reports_of.get(task.name, {}), grad_norm, seconds)
        for task in tasks
        if task.name in mixture
    ]


def _record(task: Task, share: float, means: dict, reports: dict[str, list], grad_norm: float, seconds: float) -> StepRecord:
    ranks = share * world_size()
    values = {name: value for name, value in means.items() if name not in _FACTS} | {"grad_norm": grad_norm}
    return StepRecord(
        task.name, values, reports, examples=round(share * task.batch_size), tokens=round(ranks * means["tokens"]),
        seconds=share * seconds, wait_seconds=share * means["wait_seconds"], flops=ranks * means["flops"], share=share,
    )  # fmt: skip
