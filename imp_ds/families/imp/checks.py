"""What a run of IMP cannot be on its ranks, beyond what is refused of any family (`imp_ds.train.engine.layout`)."""

from imp_ds.config import RunConfig
from imp_ds.errors import UserError
from imp_ds.families.groups import check_groups
from imp_ds.families.imp.costs.tokens import task_sequences
from imp_ds.models.imp.configuration_imp import ImpConfig


def check(run: RunConfig, config: ImpConfig, world_size: int) -> None:
    """Raise UserError for sequences that do not fit, routing groups that hang on the ranks, and gates that lack a task."""
    seen = [(task, task_sequences(task, config, run.data.audio)) for parent in run.tasks for task in parent.variants()]
    if config.routes_tokens:
        lengths = [(task, {name: found.length for name, found in sequences.items()}) for task, sequences in seen]
        check_groups(lengths, world_size, config.group_tokens, config.group_examples)
    if config.num_experts and config.gate in ("task", "attribute"):
        _check_evaluations(run, config)


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
