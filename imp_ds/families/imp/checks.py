"""What a run of IMP cannot be on its ranks, beyond what is refused of any family (`imp_ds.train.engine.layout`)."""

import math

from imp_ds.config import RunConfig
from imp_ds.costs import Sequences
from imp_ds.errors import UserError
from imp_ds.families.imp.tokens import task_sequences
from imp_ds.models.imp.configuration_imp import ImpConfig
from imp_ds.moe.grouping import examples_per_group
from imp_ds.tasks import Task


def check(run: RunConfig, config: ImpConfig, world_size: int) -> None:
    """Raise UserError for sequences that do not fit, routing groups that hang on the ranks, and gates that lack a task."""
    seen = [(task, task_sequences(task, config, run.data.audio)) for whole in run.tasks for task in whole.variants()]
    if config.routes_tokens:
        _check_groups(seen, world_size, config)
    if config.num_experts and config.gate in ("task", "attribute"):
        _check_evaluations(run, config)


def _check_groups(seen: list[tuple[Task, dict[str, Sequences]]], world_size: int, config: ImpConfig) -> None:
    """Tokens compete inside the same groups as on one rank with the whole batch, so that ranks do not change the results."""
    limits = config.group_tokens, config.group_examples
    for task, sequences in seen:
        here = task.batch_size // (world_size * task.micro_batches)
        for name, found in sequences.items():
            whole, part = (examples_per_group(batch, found.length, *limits) for batch in (task.batch_size, here))
            if whole != part:
                most = math.gcd(whole, part)
                raise UserError(
                    f"task {task.name}: the routing groups of {name} would not be those of one rank",
                    got=f"groups of {part} among {here} samples of a rank at a time, of {whole} among all {task.batch_size}",
                    allowed="groups that each rank holds whole",
                    fix=f"--set model.group_examples={most}, or another batch_size, fewer micro-batches or fewer ranks",
                )  # fmt: skip


def _check_evaluations(run: RunConfig, config: ImpConfig) -> None:
    """Gates that ask for the task have to be told it by evaluations too; those of texts and captions name one already."""
    for evaluation in run.evaluations:
        composed = config.gate == "attribute" and evaluation.head == "likelihood" and evaluation.task is None
        named = evaluation.captioner is not None or evaluation.modality == "text" and evaluation.head == "pair"
        told = named or composed
        if not told and evaluation.task not in config.objectives:
            raise UserError(
                f"evaluation {evaluation.name}: the encoder's {config.gate} gates have to be told a task of the run",
                got=evaluation.task or "no task", allowed=", ".join(config.objectives),
                fix=f"--set evaluations.{evaluation.name}.task={next(iter(config.objectives))}",
            )  # fmt: skip
