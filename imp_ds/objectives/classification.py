"""Classification of one modality by a linear head on its pooled encoding (IMP release, `optimization/objectives.py`).

Shapes: B samples of this rank, D width, N classes.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import nn

from imp_ds.costs import product
from imp_ds.errors import UserError
from imp_ds.modalities import ModalityName
from imp_ds.models.imp.conditions import Sides
from imp_ds.objectives.objective import Answers, ClassObjective, Needs, ObjectiveRecord
from imp_ds.objectives.registry import register


@register
class Classification(ObjectiveRecord):
    """Classification of one modality by a linear head of the task's own."""

    kind: Literal["classification"] = Field("classification", description="which objective this is")
    modality: ModalityName = Field(description="what is classified")
    num_classes: int | None = Field(
        None, ge=2, description="outputs of the head; labels are 0 to num_classes - 1; None: as many as the source names"
    )
    names: list[str] = Field([], description="of the classes, in the order of the labels; none: those of the source, if any")
    loss: Literal["softmax", "sigmoid"] = Field("softmax", description="cross-entropy over all classes, or binary for each")
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0, description="share of the target that all classes have")

    has_own_head: ClassVar[bool] = True

    @model_validator(mode="before")
    @classmethod
    def _names_are_counted(cls, fields):
        if isinstance(fields, dict) and isinstance(fields.get("names"), list) and fields["names"]:
            return {**fields, "num_classes": fields.get("num_classes") or len(fields["names"])}
        return fields

    @model_validator(mode="after")
    def _each_class_has_a_name(self):
        if self.names and len(self.names) != self.num_classes:
            raise ValueError(f"classification: {len(self.names)} names, but num_classes = {self.num_classes}")
        return self

    def needs(self):
        return Needs(frozenset([self.modality]), label=True, classes=self.num_classes)

    def sides(self):
        return Sides(frozenset([self.modality]), frozenset())  # a head of its own: no tokens to find

    def kernels(self, shape):
        return [product(shape.samples, shape.config.hidden_size, self.num_classes, shape.value_bytes)]

    def loss_values(self, shape):
        return 0.0  # one row of logits a sample: nothing beside the encoder's activations

    def describe(self):
        return f"{self.num_classes} classes of {self.modality}"

    def wants_class_names(self):
        return None if self.names else self.num_classes is None

    def with_class_names(self, names):
        fits = not self.names and self.num_classes in (None, len(names))
        return self.model_copy(update={"names": names, "num_classes": len(names)}) if fits else self

    def has_open_size(self):
        return self.num_classes is None

    def answers(self):
        return Answers([self.modality], "names") if self.names else None

    def build(self, config, known):
        return ClassificationObjective(config, self)


class ClassificationObjective(ClassObjective):
    """Softmax or sigmoid cross-entropy. forward: (model, encodings by modality, targets) -> (loss, metrics).

    targets["label"] is int64 [B], or float [B, N] of class membership: normalised to sum 1 for softmax (as released for
    images of several labels), used as it is for sigmoid. The sigmoid loss is the mean over classes.
    """

    def __init__(self, config, record: Classification):
        super().__init__()
        if record.num_classes is None:
            raise UserError(
                "how many classes a head distinguishes is known to the data alone", got="num_classes = None",
                fix="set num_classes, or open the corpus first: imp_ds.data.class_names.with_counted_classes(run)",
            )  # fmt: skip
        self.modality, self.inputs = record.modality, [record.modality]
        self.class_names = record.names or [str(k) for k in range(record.num_classes)]
        self.num_classes, self.loss, self.label_smoothing = record.num_classes, record.loss, record.label_smoothing
        self.head = nn.Linear(config.hidden_size, record.num_classes)

    def logits(self, model, encodings: dict) -> torch.Tensor:
        """Of each sample and class, float32 [B, N]."""
        return self.head(encodings[self.modality].pooled_BD).float()

    def probabilities(self, model, encodings: dict) -> torch.Tensor:
        """Of each sample and class, float32 [B, N]: they sum to 1 under softmax, each stands for itself under sigmoid."""
        logits_BN = self.logits(model, encodings)
        return logits_BN.softmax(1) if self.loss == "softmax" else logits_BN.sigmoid()

    def forward(self, model, encodings: dict, targets: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logits_BN = self.logits(model, encodings)
        label = targets["label"]
        if not label.is_floating_point():  # a label that is no class has a row of zeros: the loader leaves such samples out
            label = label[:, None] == torch.arange(self.num_classes, device=label.device)
        member_BN = label.float()
        correct = member_BN.gather(1, logits_BN.detach().argmax(1, keepdim=True)) > 0
        if self.loss == "softmax":
            share_BN = member_BN / member_BN.sum(1, keepdim=True).clamp(min=1e-6)
            loss = F.cross_entropy(logits_BN, share_BN, label_smoothing=self.label_smoothing)
        else:
            smooth_BN = member_BN * (1 - self.label_smoothing) + self.label_smoothing / 2
            loss = F.binary_cross_entropy_with_logits(logits_BN, smooth_BN)
        return loss, {f"accuracy/{self.modality}": correct.float().mean()}
