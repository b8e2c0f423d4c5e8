"""Classification of one modality by a linear head on its pooled encoding (IMP release, `optimization/objectives.py`).

Shapes: B samples of this rank, D width, N classes.
"""

import torch
import torch.nn.functional as F
from torch import nn

from imp_ds.errors import UserError
from imp_ds.objectives.objective import Objective


class ClassificationObjective(Objective):
    """Softmax or sigmoid cross-entropy. forward: (model, encodings by modality, targets) -> (loss, metrics).

    targets["label"] is int64 [B], or float [B, N] of class membership: normalised to sum 1 for softmax (as released for
    images of several labels), used as it is for sigmoid. The sigmoid loss is the mean over classes.
    """

    answer_at = "start"  # as likelihood objectives have it

    def __init__(
        self, config, modality: str, num_classes: int | None, loss: str = "softmax", label_smoothing: float = 0.0,
        names: list[str] = (),
    ):  # fmt: skip
        super().__init__()
        if num_classes is None:
            raise UserError(
                "how many classes a head tells apart is known to the data alone", got="num_classes = None",
                fix="set num_classes, or open the corpus first: imp_ds.data.class_names.with_counted_classes(run)",
            )  # fmt: skip
        self.modality, self.inputs, self.names = modality, [modality], list(names)
        self.num_classes, self.loss, self.label_smoothing = num_classes, loss, label_smoothing
        self.head = nn.Linear(config.hidden_size, num_classes)

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
