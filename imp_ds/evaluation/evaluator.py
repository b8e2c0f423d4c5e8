"""What an evaluator is: a class that is made for an evaluation of a run, or for a task, and measures a model.

An evaluator is one file: its subclass of `Evaluator` under `@register_evaluator`. One of this package has a line in
`imp_ds.registry`; another is known once its module is imported, and `Evaluation.evaluator` then takes its name.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import torch

from imp_ds.errors import UserError
from imp_ds.evaluation.metric import Metric
from imp_ds.evaluation.split import Split
from imp_ds.evaluation_record import Evaluation
from imp_ds.records import Record
from imp_ds.registry import EVALUATORS
from imp_ds.tasks import Batch, Task


class Projection(NamedTuple):
    """Vectors for TensorBoard's projector, [N, C], what each shows in words, and as a picture, float [N, 3, H, W] in [0, 1]."""

    vectors_NC: torch.Tensor
    labels: list[str] | None = None
    pictures_N3HW: torch.Tensor | None = None


class Evaluator(ABC):
    """Measures a model on a split.

    kind: the name in `Evaluation.evaluator`.
    family: of models that it measures, as `RunConfig.model.family` names it; None: of any.
    Options: what may be set in `Evaluation.options`; nothing by default.
    reads_heads: whether `run` is given the model for pre-training, with the tasks' heads, instead of its encoder alone.
    usage: after a run each expert's share of the combine weights, {modality: [layer][expert]}; {} where that is not known.
    """

    kind: ClassVar[str]
    family: ClassVar[str | None] = None
    Options: ClassVar[type[Record]] = Record
    reads_heads: ClassVar[bool] = False
    record: Evaluation
    usage: dict[str, list[list[float]]] = {}

    def __init__(self, split: Split, record: Evaluation):
        """What is needed of the split, read and checked. Raises UserError."""
        self.split, self.record = split, record

    @classmethod
    def measures(cls, run) -> bool:
        """Whether it can measure the model of a run."""
        return cls.family in (None, run.model.family)

    @classmethod
    def build(cls, split: Split, record: Evaluation) -> "Evaluator":
        """The evaluator of an evaluation. Raises UserError."""
        return cls(split, record)

    @classmethod
    def serves(cls, run, record: Evaluation) -> bool:
        """Whether it measures an evaluation that names no evaluator, by what its other fields ask for."""
        return False

    @classmethod
    def serves_task(cls, task: Task) -> bool:
        """Whether it measures a task, on those of its sources' splits that are not trained on."""
        return False

    @classmethod
    def build_for_task(cls, split: Split, task: Task) -> "list[Evaluator]":
        """The evaluators of a task that it serves. Raises UserError."""
        raise UserError(f"the evaluator {cls.kind} measures no tasks", got=task.name)

    @abstractmethod
    def run(self, model) -> Iterator[Metric]:
        """What is measured. All ranks call this together, and get the same values; gradients are off."""

    def options(self) -> Record:
        """What the evaluation sets of `Options`."""
        return self.Options.model_validate(self.record.options)

    def examples(self, count: int) -> tuple[Batch, list[tuple[str, str]]] | None:
        """After a run, `count` entries of this rank, and of each (what the model made of it, what it was to be), for
        TensorBoard; None: there is nothing to show."""
        return None

    def lines(self) -> list[dict]:
        """After a run, what was measured one by one, as prompts and answers, to be kept beside the results; []: nothing."""
        return []

    def projection(self, count: int) -> Projection | None:
        """After a run, the first `count` vectors; None: there are none."""
        return None


def register_evaluator(kind: type[Evaluator]) -> type[Evaluator]:
    """Make an evaluator known, as a decorator of its class. Raises UserError for one that leaves something open, or whose name
    is taken."""
    return EVALUATORS.register(kind, Evaluator)
