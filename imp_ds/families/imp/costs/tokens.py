"""How many tokens a task's view of a sample gives, by modality, and what sequences are made of them: arithmetic that needs
neither samples nor a model."""


from imp_ds.config import DataSettings
from imp_ds.costs import Sequences
from imp_ds.errors import UserError
from imp_ds.modalities.drop_token import kept_count
from imp_ds.modalities.modality import get_modality
from imp_ds.modalities.views import Views
from imp_ds.models.imp.configuration_imp import ImpConfig
from imp_ds.objectives.objective import ObjectiveRecord
from imp_ds.objectives.registry import split_spec
from imp_ds.tasks import Task


def token_counts(
    views: Views, config: ImpConfig, data: DataSettings, *, training: bool = True, whose: str = ""
) -> dict[str, int]:  # fmt: skip
    """Tokens of one sample for each modality in view; with `training`, those that DropToken leaves.

    whose: what stands before the views in a path of the run, for errors: "tasks.NAME.".

    Raises UserError when a view is not a multiple of its patch or larger than the largest that the positions hold.
    """
    counts = {}
    for name in views.names():
        view = getattr(views, name)
        total = get_modality(name).tokens(view, config, getattr(data, name, None), f"{whose}views.{name}")
        kept = kept_count(total, getattr(view, "drop_rate", 0.0) if training else 0.0)
        counts[name] = kept + get_modality(name).registers(config)
    return counts


def task_tokens(task: Task, config: ImpConfig, data: DataSettings) -> dict[str, int]:
    """`token_counts` of a task in training; errors name the task, and an example must fit into a routing group."""
    try:
        counts = token_counts(task.views, config, data, whose=f"tasks.{task.name}.")
    except UserError as error:
        raise UserError(f"task {task.name}: {error}") from None
    longest = max(counts, key=counts.get)
    if config.routes_tokens and counts[longest] > config.group_tokens:
        raise _too_long(task, config, f"{counts[longest]} tokens of {longest}")
    return counts


def task_sequences(task: Task, config: ImpConfig, data: DataSettings) -> dict[str, Sequences]:
    """What a step of `task` encodes of its samples, by the names that objectives have for it. Errors as of `task_tokens`."""
    tokens, found = task_tokens(task, config, data), {}
    for objective in task.objectives:
        found |= objective.sequences(tokens, task.batch_size)
    longest = max(found, key=lambda name: found[name].length, default=None)
    if longest is not None and config.routes_tokens and found[longest].length > config.group_tokens:
        raise _too_long(task, config, f"{found[longest].length} tokens of {longest}")
    return found


def candidate_sequences(task: Task, config: ImpConfig) -> dict[str, Sequences]:
    """The texts that a step of `task` encodes beside its samples, each set once.

    Where `config` was made without a tokenizer, a token is counted for each word of a name. Raises UserError for names that only
    the data give.
    """
    return {name: sequences for name, (sequences, _) in task_candidates(task, config).items()}


def task_candidates(task: Task, config: ImpConfig) -> dict[str, tuple[Sequences, ObjectiveRecord]]:
    """`candidate_sequences`, with an objective that looks among each set."""
    found = {}
    for objective, spec in zip(task.objectives, config.objectives[task.name]["objectives"]):
        known = split_spec(spec)[1]
        sets = objective.candidate_sequences(config, known, task.source.label_names, task.name)
        found |= {name: (sequences, objective) for name, sequences in sets.items()}
    return found


def _too_long(task: Task, config: ImpConfig, got: str) -> UserError:
    return UserError(
        f"task {task.name}: an example is longer than a routing group",
        got=got,
        allowed=f"model.group_tokens = {config.group_tokens} at most",
        fix="raise model.group_tokens, or use fewer frames, a smaller size or a higher drop_rate",
    )
