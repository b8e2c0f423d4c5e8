"""How queries and candidates become vectors: by the projections of a pair of modalities, or by the likelihood
head, which compares whatever there is.

Shapes: B entries of a batch, C width of a common space.
"""

from collections.abc import Iterator

import torch

from imp_ds.errors import UserError
from imp_ds.evaluation_record import Evaluation
from imp_ds.models.imp.conditions import Sides, segment_attributes
from imp_ds.models.imp.likelihood import encode_at_mask, encode_with_spe
from imp_ds.moe.routing import Condition, RouterReport
from imp_ds.tasks import Batch

Vectors = tuple[str, torch.Tensor, list[RouterReport]]  # the modality, unit vectors [B, C], the routers' reports


class PairSides:
    """By projections: the record's modality towards text, and text towards it. Gates get the record's task."""

    def __init__(self, record: Evaluation):
        self.modality, self.target, self.task = record.modality, "text", record.task

    def query(self, model, batch: Batch) -> Vectors:
        """The queries."""
        return self._project(model, batch, self.modality, self.target)

    def candidates(self, model, batch: Batch) -> Vectors:
        """The candidates."""
        return self._project(model, batch, self.target, self.modality)

    def _project(self, model, batch: Batch, source: str, target: str) -> Vectors:
        encoding = model.encode_side(source, batch.inputs, self.task)
        return source, model.project(encoding.pooled_BD, source, target), encoding.reports


class LikelihoodSides:
    """By the likelihood head: the record's modality, or with it a text that has a mask, against candidates of its target.

    Gates get the record's task; without one attribute gates get the modalities of queries and candidates, so
    that a pair of modalities which no task has trained has a condition too.
    """

    def __init__(self, record: Evaluation):
        self.name, self.modality, self.target, self.task = record.name, record.modality, record.target, record.task
        self.answer_mask = record.answer_at == "mask"
        self.inputs = [self.modality] + (["text"] if self.answer_mask and self.modality != "text" else [])

    def query(self, model, batch: Batch) -> Vectors:
        """The queries."""
        head, parts = self._head(model), [(m, batch.inputs[m], self._condition(model, m, False)) for m in self.inputs]
        encoding = (encode_at_mask if self.answer_mask else encode_with_spe)(model, parts)
        return self.modality, head(encoding.pooled_BD), encoding.reports

    def candidates(self, model, batch: Batch) -> Vectors:
        """The candidates."""
        part = (self.target, batch.inputs[self.target], self._condition(model, self.target, True))
        encoding = encode_with_spe(model, [part])
        return self.target, self._head(model)(encoding.pooled_BD), encoding.reports

    def _head(self, model):
        if model.likelihood is None:
            raise UserError(
                f"evaluation {self.name}: the model has no likelihood head", got='head = "likelihood"',
                allowed='head = "pair" for a model of contrastive tasks', fix="or train a task of kind likelihood",
            )  # fmt: skip
        return model.likelihood

    def _condition(self, model, modality: str, target: bool) -> Condition:
        attributes = None
        if self.task is None and model.config.gate == "attribute":
            attributes = segment_attributes(modality, Sides(frozenset(self.inputs), frozenset([self.target])), target)
        return model.condition(modality, self.task, target=target, attributes=attributes)


def build_sides(record: Evaluation) -> PairSides | LikelihoodSides:
    """By the record's `head`."""
    return LikelihoodSides(record) if record.head == "likelihood" else PairSides(record)


def both(sides: PairSides | LikelihoodSides, model, batch: Batch) -> Iterator[Vectors]:
    """The queries, then the candidates."""
    yield sides.query(model, batch)
    yield sides.candidates(model, batch)
