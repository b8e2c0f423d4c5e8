"""What of a model a run trains: `train.trainable`, and the list of what that is.

Shapes are those of the whole model: all experts, whatever a rank holds of it.
"""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from itertools import groupby, product
from math import prod
from typing import NamedTuple

import torch
from torch import nn

from imp_ds.errors import UserError
from imp_ds.families.build import meta_module
from imp_ds.families.train_module import TrainModule

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")


class Tensors(NamedTuple):
    """Parameters of one shape whose names differ in numbers alone: "model.layers.{0-3}.mlp.w1"; `count` of them."""

    name: str
    shape: tuple[int, ...]
    count: int

    @property
    def parameters(self) -> int:
        """Elements of all of them."""
        return self.count * prod(self.shape)


class Trained(NamedTuple):
    """What is trained, in the model's order, and numbers of parameters."""

    tensors: list[Tensors]
    trained: int
    frozen: int

    def lines(self) -> list[str]:
        """For people: a head, and a line for each entry."""
        total = self.trained + self.frozen
        head = f"trained: {self.trained:,} of {total:,} parameters ({self.trained / total:.2%}), {self.frozen:,} are frozen"
        counted = lambda one: f"{one.count} x {list(one.shape)}" if one.count > 1 else f"{list(one.shape)}"  # noqa: E731
        return [head, *(f"  {one.name} {counted(one)}: {one.parameters:,}" for one in self.tensors)]

    def as_json(self) -> dict:
        tensors = [{**one._asdict(), "shape": list(one.shape), "parameters": one.parameters} for one in self.tensors]
        return {"trained": self.trained, "frozen": self.frozen, "tensors": tensors}


def is_trained(name: str, patterns: list[str] | None) -> bool:
    """Whether `train.trainable` has the parameter of that name trained; None: everything is."""
    return patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns)


def freeze_others(model: nn.Module, patterns: list[str] | None) -> None:
    """`train.trainable`: leave trainable what a pattern matches, names of parameters where * stands for anything; None:
    everything. The others keep their values, and no optimizer knows them.

    Raises UserError for a pattern that nothing matches.
    """
    if patterns is None:
        return
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            allowed = "names of parameters, where * stands for anything, for example *norm* or objectives.*"
            raise UserError("train.trainable: the model has no such parameter", got=pattern, allowed=allowed)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trained(name, patterns))


def check_trains(loss: torch.Tensor, batch) -> None:
    """Raise UserError for a loss of a batch that nothing of what is trained has a part in; on every rank alike."""
    if not loss.requires_grad:
        raise UserError(
            "train.trainable leaves nothing to train in a task", got=batch.task,
            fix="add a pattern of what it uses, for example of its head, or leave the task out", shared=True,
        )  # fmt: skip


def trained_of(model: nn.Module) -> Trained:
    """What of a model, with all experts, is trained: what requires a gradient."""
    named = list(model.named_parameters())
    sizes = {True: 0, False: 0}
    for _, parameter in named:
        sizes[parameter.requires_grad] += parameter.numel()
    return Trained(folded((name, tuple(p.shape)) for name, p in named if p.requires_grad), sizes[True], sizes[False])


def trained_parts(kind: type[TrainModule], config, patterns: list[str] | None) -> Trained:
    """`trained_of` the model of a configuration, of which nothing is made but names and shapes. Raises UserError as
    `freeze_others`."""
    model = meta_module(kind, config)
    freeze_others(model, patterns)
    return trained_of(model)


def folded(named: Iterable[tuple[str, tuple[int, ...]]]) -> list[Tensors]:
    """(name, shape) of parameters, those of repeated layers folded to one entry, in the order in which each first comes."""
    groups: dict[tuple, list[tuple[int, ...]]] = {}
    for name, shape in named:
        numbers = tuple(int(number) for number in _NUMBER.findall(name))
        groups.setdefault((_NUMBER.sub("{}", name), shape), []).append(numbers)
    found = []
    for (template, shape), members in groups.items():
        for sets in _products(sorted(members)):
            found.append(Tensors(template.format(*map(_shown, sets)), shape, prod(map(len, sets))))
    return found


def _products(members: list[tuple[int, ...]]) -> list[list[list[int]]]:
    """Tuples of numbers as products of sets of them: one, where they are all combinations; else some for each first number."""
    sets = [sorted(set(column)) for column in zip(*members)]
    if members == list(product(*sets)) or len(sets) < 2:
        return [sets]
    parts = groupby(members, key=lambda numbers: numbers[0])
    return [[[first], *rest] for first, some in parts for rest in _products([numbers[1:] for numbers in some])]


def _shown(numbers: list[int]) -> str:
    """ "{0-3}", "{1-31 by 2}", "{0,2,5-7}", and a single number as it is."""
    if len(numbers) == 1:
        return str(numbers[0])
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1, step := numbers[1] - numbers[0])) and step > 1:
        return f"{{{numbers[0]}-{numbers[-1]} by {step}}}"
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]
    return "{" + ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) + "}"
