"""What a segment's condition is: the modality of its tokens, its task, and what is true of both, as named bits.

Uni-Perceiver-MoE (arXiv 2206.04674; release, `datasets/moe_embeddings.py`) describes each segment by bits that say what the
task's queries and candidates are, and what the segment's own tokens are. Here the bits have names; a task's are composed from
what its objectives say of inputs and targets, so that a task that was never trained has a description without new parameters.

An objective says so itself (`imp_ds.objectives.objective.ObjectiveRecord.sides`), and the model's configuration keeps it. Shapes:
A attributes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from imp_ds.errors import UserError
from imp_ds.moe.routing import Condition
from imp_ds.registry import MODALITIES


def attribute_names(modalities: Sequence[str]) -> tuple[str, ...]:
    """The attributes of segments in a model of these modalities, in the order of their bits."""
    return (
        *(f"input_{modality}" for modality in modalities),  # the task reads it
        *(f"target_{modality}" for modality in modalities),  # the task looks for it
        *(f"token_{modality}" for modality in modalities),  # the segment's tokens are of it
        "target_side",  # the segment is of what is looked for: candidates
        "causal",  # a token of the segment sees none that follows it
    )



class Sides(NamedTuple):
    """The modalities of a task's queries, those of its candidates, and those that are causal, token by token.
    candidates: whether its candidates are texts that are encoded for it."""

    inputs: frozenset[str]
    targets: frozenset[str]
    causal: frozenset[str] = frozenset()
    candidates: bool = False


def task_sides(task: str, objectives: list[dict]) -> Sides:
    """All that the objectives of a task, as ImpConfig.objectives has them, have as queries and candidates, together. Raises
    UserError, naming the task, for an objective that does not say it."""
    silent = [spec.get("kind") for spec in objectives if "sides" not in spec]
    if silent:
        raise UserError(
            f"task {task}: an objective gives no queries and candidates", got=", ".join(map(str, silent)),
            allowed='a spec with "sides"', fix="make the entry with imp_ds.objectives.registry.task_entry([objective, ...])",
        )  # fmt: skip
    parts = ([spec["sides"][name] for spec in objectives] for name in ("inputs", "targets", "causal"))
    return Sides(*(frozenset().union(*part) for part in parts), any(spec["sides"]["candidates"] for spec in objectives))


def causal_tasks(objectives: dict[str, dict]) -> list[str]:
    """Of ImpConfig.objectives the tasks in which something is read token by token."""
    return [task for task, entry in objectives.items() if task_sides(task, entry["objectives"]).causal]


def candidate_tasks(objectives: dict[str, dict]) -> list[str]:
    """Of ImpConfig.objectives the tasks whose candidates are texts that are encoded for it, not those of their batch."""
    return [task for task, entry in objectives.items() if task_sides(task, entry["objectives"]).candidates]


def segment_attributes(modality: str, sides: Sides, target: bool | None = None) -> tuple[str, ...]:
    """The names of the attributes of a segment of `modality` in a task of these sides, in their order.

    target: whether the segment is of the candidates; None: it is when the modality is of the candidates and not of the queries.
    """
    target = modality in sides.targets - sides.inputs if target is None else target
    true = {f"input_{m}" for m in sides.inputs} | {f"target_{m}" for m in sides.targets} | {f"token_{modality}"}
    true |= {"target_side"} if target else {"causal"} if modality in sides.causal else set()
    return tuple(name for name in attribute_names([*MODALITIES]) if name in true)


def is_target(config, modality: str, task: str | None, target: bool | None = None) -> bool:
    """Whether a segment of `modality` is of the candidates, arguments as those of `ImpModel.condition`. A model of one task alone
    need not be given it; False where nothing gives it."""
    if target is None and task is None and len(config.objectives) == 1:
        (task,) = config.objectives
    if target is not None or task not in config.objectives:
        return bool(target)
    sides = task_sides(task, config.objectives[task]["objectives"])
    return modality in sides.targets - sides.inputs


def condition_name(
    config, modality: str, task: str | None, target: bool | None = None, attributes: tuple[str, ...] | None = None
) -> str:
    """What the gate of an encoder reads of a segment's condition: its modality, its task, or its attributes joined by "+".

    Arguments as those of `ImpModel.condition`; "" for gates that ask for nothing. Raises UserError, naming the task, for what the
    encoder does not know.
    """
    if config.gate == "modality":
        return modality
    if config.gate == "task":
        return _known(task, config.gate_tasks, config.gate)
    if config.gate != "attribute":
        return ""
    if attributes is None:
        task = _known(task, list(config.objectives), config.gate)
        attributes = segment_attributes(modality, task_sides(task, config.objectives[task]["objectives"]), target)
    known = attribute_names(config.modalities)
    if unknown := sorted(set(attributes) - set(known)):
        of = f"task {task}" if task else f"a segment of {modality}"
        raise UserError(f"{of}: unknown attribute", got=", ".join(unknown), allowed=", ".join(known))
    return "+".join(name for name in known if name in attributes)


def _known(task: str | None, tasks: list[str], gate: str) -> str:
    if task is None:
        raise UserError(f"the encoder's {gate} gates need the task", got="no task", allowed=", ".join(tasks))
    if task not in tasks:
        fix = "of another task, give the attributes" if gate == "attribute" else "its id has never been trained"
        raise UserError(f"the encoder's {gate} gates do not know this task", got=task, allowed=", ".join(tasks), fix=fix)
    return task


def task_conditions(config, task: str) -> list[str]:
    """The names of all conditions that segments of a task can have, those of its queries first, each once."""
    sides = task_sides(task, config.objectives[task]["objectives"])
    sides_in_order = [(m, False) for m in config.modalities if m in sides.inputs]
    segments = sides_in_order + [(m, True) for m in config.modalities if m in sides.targets]
    return list(dict.fromkeys(condition_name(config, modality, task, target) for modality, target in segments))


def build_condition(config, name: str, device: torch.device) -> Condition:
    """The condition of that name for the gates of an encoder, or its copy in a merged one.

    Raises UserError when a merged model has no copy for it.
    """
    if config.merged_conditions:
        if name not in config.merged_conditions:
            raise UserError(
                "the model was merged for other conditions", got=name, allowed="; ".join(config.merged_conditions),
                fix="export it again with this task among --tasks; what no task has needs the model with its experts",
            )  # fmt: skip
        return Condition(copy=config.merged_conditions.index(name))
    if not name or not config.num_experts:
        return Condition()
    # numbers from the device itself: a tensor made of Python's would be a copy from the host, which waits
    if config.gate == "attribute":
        known = attribute_names(config.modalities)
        code = sum(1 << place for place, attribute in enumerate(known) if attribute in name.split("+"))
        bits_1A = (torch.full((1, 1), code, device=device) >> torch.arange(len(known), device=device)) & 1
        return Condition(bits_1A.float())
    names = config.modalities if config.gate == "modality" else config.gate_tasks
    return Condition(torch.full((1,), names.index(name), device=device))


def trained_spaces(config) -> list[tuple[str, str]]:
    """The pairs of modalities that a task of the model compares in their common space, in the order of config.pairs; all of these
    for a model that knows no tasks."""
    specs = [spec for entry in config.objectives.values() for spec in entry["objectives"]]
    if not specs or not all("spaces" in spec for spec in specs):
        return [tuple(pair) for pair in config.pairs]
    trained = {frozenset(pair) for spec in specs for pair in spec["spaces"]}
    return [tuple(pair) for pair in config.pairs if frozenset(pair) in trained]
