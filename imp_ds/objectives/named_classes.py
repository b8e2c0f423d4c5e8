"""Classification among classes that have names: what a trained model is tuned by, on little data.

Uni-Perceiver-MoE (arXiv 2206.04674; release, `unified_transformer.py`) adds a linear head that starts at zero to the scores that
the model already gives to the names of the classes: logits = w * scores + head(x), w learned from 1 on. So tuning begins where
the model stands. Without names it is a linear probe, logits = head(x).

Shapes: B samples of this rank, N classes, P prompts, L tokens of a prompt, D width, C width of a common space.
"""

import torch
import torch.nn.functional as F
from torch import nn

from imp_ds.models.imp.modeling_imp import Encoding, ImpModel
from imp_ds.objectives.objective import Objective


class ClassHead(nn.Module):
    """A linear head that starts at zero, beside the weight of the scores by names, where there are some.
    forward: (x [B, D], scores by names [B, N] or None) -> logits, float32 [B, N]."""

    def __init__(self, width: int, num_classes: int, names: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, width))
        self.bias = nn.Parameter(torch.empty(num_classes))
        self.similarity = nn.Parameter(torch.empty(1)) if names else None  # w

    @torch.no_grad()
    def initialize_parameters(self) -> None:
        self.weight.zero_()
        self.bias.zero_()
        if self.similarity is not None:
            self.similarity.fill_(1.0)

    def forward(self, x_BD: torch.Tensor, scores_BN: torch.Tensor | None) -> torch.Tensor:
        logits_BN = F.linear(x_BD, self.weight, self.bias).float()
        return logits_BN if scores_BN is None else logits_BN + self.similarity.float() * scores_BN


class NamedClassesObjective(Objective):
    """Cross-entropy among named classes; targets["label"] is int64 [B].

    Args, as in `imp_ds.tasks.NamedClasses`:
        modality: what is classified.
        names: of the classes, in the order of the labels.
        contrast: how the common space of the modality and text scores the names (`NamesByContrast`); None: a linear probe.
    """

    def __init__(self, config, modality: str, names: list[str], contrast: dict | None = None):
        super().__init__()
        self.modality, self.names = modality, list(names)
        self.by_names = None if contrast is None else NamesByContrast(config, modality, **contrast)
        self.head = ClassHead(config.hidden_size, len(names), names=self.by_names is not None)

    @property
    def of_names(self) -> list[str]:
        """Which encodings are of the names alone, and so the same for all batches."""
        return [] if self.by_names is None else [self.by_names.encoding]

    def encode(self, model: ImpModel, batch, encodings: dict[str, Encoding]) -> None:
        super().encode(model, batch, encodings)
        if self.by_names is not None:
            self.by_names.encode(model, batch, encodings)

    def logits(self, model: ImpModel, encodings: dict[str, Encoding]) -> torch.Tensor:
        """Of each sample and class, float32 [B, N]."""
        scores_BN = None if self.by_names is None else self.by_names.logits(model, encodings)
        return self.head(encodings[self.modality].pooled_BD, scores_BN)

    def forward(self, model, encodings, targets):
        logits_BN, label_B = self.logits(model, encodings), targets["label"]
        right_B = logits_BN.detach().argmax(1) == label_B
        return F.cross_entropy(logits_BN, label_B), {f"accuracy/{self.modality}": right_B.float().mean()}


class NamesByContrast:
    """The scores of the names where a modality and text meet: the cosines with the classes' vectors, divided by the temperature
    that was trained. A class's vector is the mean of its prompts', of unit length again, as in zero-shot evaluation.

    Args, as in `imp_ds.tasks.ContrastNames`:
        prompts: the tokens of each class in each template, [class][template][token]. They are encoded in every step, since tuning
            changes what becomes of them.
        length: tokens that a prompt is padded to.
        temperature: T.
    """

    encoding = "class_names"  # of all prompts, among a batch's encodings

    def __init__(self, config, modality: str, prompts: list[list[list[int]]], length: int, temperature: float):
        self.modality, self.temperature, self.classes = modality, temperature, len(prompts)
        self._rows = [ids for templates in prompts for ids in templates]
        self._length, self._pad_id = length, config.pad_token_id
        self._inputs: dict[str, torch.Tensor] = {}

    def encode(self, model: ImpModel, batch, encodings: dict[str, Encoding]) -> None:
        """Add the encoding of the prompts."""
        if self.encoding not in encodings:
            condition = model.condition("text", batch.task, target=True)
            encodings[self.encoding] = model.encode("text", self._on(model.device), condition=condition)

    def logits(self, model: ImpModel, encodings: dict[str, Encoding]) -> torch.Tensor:
        """Of each sample and class, float32 [B, N]."""
        prompts_PC = model.project(encodings[self.encoding].pooled_BD, "text", self.modality)
        classes_NC = F.normalize(prompts_PC.view(self.classes, -1, prompts_PC.shape[1]).mean(1), dim=-1)
        vectors_BC = model.project(encodings[self.modality].pooled_BD, self.modality, "text")
        return vectors_BC @ classes_NC.T / self.temperature

    def _on(self, device: torch.device) -> dict[str, torch.Tensor]:
        """All prompts as the text embedding takes them, made once for a device."""
        if not self._inputs or self._inputs["input_ids"].device != device:
            ids_PL = [ids + [self._pad_id] * (self._length - len(ids)) for ids in self._rows]
            mask_PL = [[1] * len(ids) + [0] * (self._length - len(ids)) for ids in self._rows]
            self._inputs = {"input_ids": torch.tensor(ids_PL, device=device)}
            self._inputs["attention_mask"] = torch.tensor(mask_PL, device=device)
        return self._inputs
