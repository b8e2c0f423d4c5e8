"""What a segment's condition is: the modality of its tokens, its task, and what is true of both, as named bits.

Uni-Perceiver-MoE (arXiv 2206.04674; release, `datasets/moe_embeddings.py`) describes each segment by bits that say what the task
reads, what it looks for, and what the segment's own tokens are. Here the bits have names; a task's are composed from what its
objectives say of inputs and targets, so that a task that was never trained has a description without new parameters.

Adding a kind of objective is its line in SIDES.
"""

from typing import NamedTuple

from imp_ds.errors import UserError

MODALITIES = ("vision", "audio", "text")
ATTRIBUTES = (
    *(f"input_{modality}" for modality in MODALITIES),  # the task reads it
    *(f"target_{modality}" for modality in MODALITIES),  # the task looks for it
    *(f"token_{modality}" for modality in MODALITIES),  # the segment's tokens are of it
    "target_side",  # the segment is of what is looked for: candidates
    "causal",  # a token of the segment sees none that follows it
)


class Sides(NamedTuple):
    """The modalities that a task reads, those that it looks for, and those that it reads word by word, blind to what follows."""

    inputs: frozenset[str]
    targets: frozenset[str]
    causal: frozenset[str] = frozenset()


def _pairs(spec: dict) -> Sides:
    """A pair (a, b) is a question of modality a whose answer is of modality b."""
    first, second = zip(*spec["pairs"])
    return Sides(frozenset(first), frozenset(second))


# kind of an objective -> (spec) -> Sides
SIDES = {
    "contrastive": _pairs,
    "classification": lambda spec: Sides(frozenset([spec["modality"]]), frozenset()),  # a head of its own: no tokens to find
    "masked_language": lambda spec: Sides(frozenset(["text"]), frozenset(["text"])),
}


def task_sides(task: str, objectives: list[dict]) -> Sides:
    """All that the objectives of a task read and look for, together. Raises UserError, naming the task, for an unknown kind."""
    unknown = sorted({spec["kind"] for spec in objectives} - SIDES.keys())
    if unknown:
        raise UserError(
            f"task {task}: nothing says what an objective of this kind reads and looks for", got=", ".join(unknown),
            allowed=", ".join(SIDES),
        )  # fmt: skip
    sides = [SIDES[spec["kind"]](spec) for spec in objectives]
    return Sides(*(frozenset().union(*part) for part in zip(*sides)))


def segment_attributes(modality: str, sides: Sides, target: bool | None = None) -> tuple[str, ...]:
    """The names of the attributes of a segment of `modality` in a task of these sides, in the order of ATTRIBUTES.

    target: whether the segment is of the candidates; None: it is when the task looks for the modality and does not read it.
    """
    target = modality in sides.targets - sides.inputs if target is None else target
    true = {f"input_{m}" for m in sides.inputs} | {f"target_{m}" for m in sides.targets} | {f"token_{modality}"}
    true |= {"target_side"} if target else {"causal"} if modality in sides.causal else set()
    return tuple(name for name in ATTRIBUTES if name in true)


def attribute_bits(names: tuple[str, ...], task: str) -> list[float]:
    """1.0 for each of ATTRIBUTES that is among `names`, else 0.0. Raises UserError, naming the task, for an unknown name."""
    unknown = sorted(set(names) - set(ATTRIBUTES))
    if unknown:
        raise UserError(f"task {task}: unknown attribute", got=", ".join(unknown), allowed=", ".join(ATTRIBUTES))
    return [float(name in names) for name in ATTRIBUTES]
