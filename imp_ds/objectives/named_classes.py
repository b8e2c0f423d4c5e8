"""Classification among classes that have names: what a trained model is tuned by, on little data.

Uni-Perceiver-MoE (arXiv 2206.04674; release, `unified_transformer.py`) adds a linear head that starts at zero to the scores that
the model already gives to the names of the classes: logits = w * scores + head(x), w learned from 1 on. So tuning begins where
the model stands. Without names it is a linear probe, logits = head(x).

Shapes: B samples of this rank, N classes, P prompts, L tokens of a prompt, D width, C width of a common space.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from imp_ds.costs import FLOAT32, Kernel, Sequences, product
from imp_ds.modalities.modality import ModalityBesideText
from imp_ds.models.imp.conditions import Sides
from imp_ds.models.imp.likelihood import encode_with_spe
from imp_ds.models.imp.modeling_imp import Encoding, ImpModel
from imp_ds.objectives.contrastive import Contrastive
from imp_ds.objectives.likelihood import HEAD_PARAMETERS, SPE
from imp_ds.objectives.objective import Answers, ClassObjective, Needs, ObjectiveRecord, StepShape
from imp_ds.objectives.registry import register


@register
class NamedClasses(ObjectiveRecord):
    """Classification among named classes by a model that knows their names: what `imp_ds tune` makes. Without prompts it is a
    linear probe."""

    kind: Literal["named_classes"] = Field("named_classes", description="which objective this is")
    modality: ModalityBesideText = Field(description="what is classified")
    names: list[str] = Field(min_length=2, description="of the classes, in the order of the labels")
    prompts: list[list[list[int]]] = Field([], description="tokens of each class in each template; none: a linear head alone")
    length: int = Field(1, ge=1, description="tokens that a prompt is padded to")
    temperature: float = Field(1.0, gt=0, description="that the cosines in the pair's common space are divided by")
    family: str | None = Field(None, description="whose scale the likelihood head compares with, instead of the pair's space")

    is_tuned: ClassVar[bool] = True

    def needs(self):
        return Needs(frozenset([self.modality]), label=True, classes=len(self.names))

    def sides(self):
        return Sides(frozenset([self.modality]), frozenset(["text"]), candidates=self.family is not None)

    def sequences(self, tokens, batch_size):
        read = (self.modality, tokens[self.modality])
        if self.family is None:
            return {self.modality: Sequences(batch_size, (read,))}
        return {f"spe+{self.modality}": Sequences(batch_size, (SPE, read))}

    def candidate_sequences(self, config, known, class_names, task):
        """The prompts of all classes, which each rank encodes."""
        if not self.prompts:
            return {}
        segments = [] if self.family is None else [SPE]
        prompts = Sequences(sum(map(len, self.prompts)), (*segments, ("text", self.length)), split="none")
        return {NameScores.NAMES: prompts}

    def kernels(self, shape: StepShape) -> list[Kernel]:
        samples, classes = shape.samples, len(self.names)
        head = [product(samples, shape.config.hidden_size, classes, shape.value_bytes)]
        return head + ([product(samples, shape.config.common_dim, classes, FLOAT32)] if self.prompts else [])

    def loss_values(self, shape):
        return 0.0  # one row of logits a sample: nothing beside the encoder's activations

    def parameters(self):
        if not self.prompts:
            return ()
        projections = () if self.family else Contrastive(pairs=[(self.modality, "text")]).parameters()
        return (*HEAD_PARAMETERS, *projections)

    def trained_temperature(self, modality):
        return self.temperature if self.prompts and not self.family and modality == self.modality else None

    def describe(self):
        return f"{len(self.names)} named classes of {self.modality}"

    def answers(self):
        return Answers([self.modality], "names")

    @property
    def scale_family(self):
        return self.family

    def build(self, config, known):
        return NamedClassesObjective(config, self)


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


class NamedClassesObjective(ClassObjective):
    """Cross-entropy among named classes; targets["label"] is int64 [B]."""

    def __init__(self, config, record: NamedClasses):
        super().__init__()
        self.modality, self.inputs, self.class_names = record.modality, [record.modality], record.names
        self.scores = None
        if record.prompts:
            if record.family is None:
                compares = PairScores(record.modality, record.temperature)
            else:
                compares = LikelihoodScores(record.modality, record.family)
            self.scores = NameScores(compares, record.prompts, record.length, config.pad_token_id)
        self.head = ClassHead(config.hidden_size, len(record.names), names=self.scores is not None)

    def encode(self, model: ImpModel, batch, encodings: dict[str, Encoding]) -> None:
        if self.scores is None:
            super().encode(model, batch, encodings)
        else:
            self.scores.encode(model, batch, encodings)

    def logits(self, model: ImpModel, encodings: dict[str, Encoding]) -> torch.Tensor:
        """Of each sample and class, float32 [B, N]."""
        if self.scores is None:
            return self.head(encodings[self.modality].pooled_BD, None)
        return self.head(encodings[self.scores.query].pooled_BD, self.scores(model, encodings))

    def probabilities(self, model: ImpModel, encodings: dict[str, Encoding]) -> torch.Tensor:
        return self.logits(model, encodings).softmax(1)

    def forward(self, model, encodings, targets):
        logits_BN, label_B = self.logits(model, encodings), targets["label"]
        right_B = logits_BN.detach().argmax(1) == label_B
        return F.cross_entropy(logits_BN, label_B), {f"accuracy/{self.modality}": right_B.float().mean()}


class NameScores:
    """What a trained model's comparison of a modality with text says of each class: (model, encodings) -> float32 [B, N].

    A class's vector is the mean of its prompts', of unit length again, as in zero-shot evaluation. The prompts are encoded in
    every step, since tuning changes what becomes of them.
    """

    NAMES = "class_names"  # the encoding of all prompts, among those of a batch

    def __init__(self, compares: "PairScores | LikelihoodScores", prompts: list[list[list[int]]], length: int, pad_id: int):
        self.compares, self.classes, self.length, self.pad_id = compares, len(prompts), length, pad_id
        self.query = compares.sequence  # the encoding of the query
        self._rows = [ids for templates in prompts for ids in templates]
        self._inputs: dict[str, torch.Tensor] = {}

    def encode(self, model: ImpModel, batch, encodings: dict[str, Encoding]) -> None:
        """Add the encodings of the query and of the prompts."""
        compares = self.compares
        if self.query not in encodings:
            inputs, condition = batch.inputs[compares.modality], model.condition(compares.modality, batch.task)
            encodings[self.query] = compares.encode(model, compares.modality, inputs, condition, batch.key_B)
        if self.NAMES not in encodings:
            condition = model.condition("text", batch.task, target=True)
            encodings[self.NAMES] = compares.encode(model, "text", self._on(model.device), condition)

    def __call__(self, model: ImpModel, encodings: dict[str, Encoding]) -> torch.Tensor:
        prompts_PC = self.compares.vectors(model, "text", encodings[self.NAMES])
        classes_NC = F.normalize(prompts_PC.view(self.classes, -1, prompts_PC.shape[1]).mean(1), dim=-1)
        vectors_BC = self.compares.vectors(model, self.compares.modality, encodings[self.query])
        return vectors_BC @ classes_NC.T * self.compares.scale(model)

    def _on(self, device: torch.device) -> dict[str, torch.Tensor]:
        """All prompts as the text embedding takes them, made once for a device."""
        if not self._inputs or self._inputs["input_ids"].device != device:
            ids_PL = [ids + [self.pad_id] * (self.length - len(ids)) for ids in self._rows]
            mask_PL = [[1] * len(ids) + [0] * (self.length - len(ids)) for ids in self._rows]
            self._inputs = {"input_ids": torch.tensor(ids_PL, device=device)}
            self._inputs["attention_mask"] = torch.tensor(mask_PL, device=device)
        return self._inputs


class PairScores:
    """By the projections of a modality and text into their common space."""

    def __init__(self, modality: str, temperature: float):
        self.modality, self.sequence, self.temperature = modality, modality, temperature

    def encode(self, model: ImpModel, modality: str, inputs, condition, key_B=None) -> Encoding:
        return model.encode(modality, inputs, key_B, condition)

    def vectors(self, model: ImpModel, modality: str, encoding: Encoding) -> torch.Tensor:
        return model.project(encoding.pooled_BD, modality, self.modality if modality == "text" else "text")

    def scale(self, model: ImpModel) -> float:
        return 1.0 / self.temperature


class LikelihoodScores:
    """By the head that compares all things, with the scale of a family of tasks."""

    def __init__(self, modality: str, family: str):
        self.modality, self.sequence, self.family = modality, f"spe+{modality}", family

    def encode(self, model: ImpModel, modality: str, inputs, condition, key_B=None) -> Encoding:
        return encode_with_spe(model, [(modality, inputs, condition)], key_B)

    def vectors(self, model: ImpModel, modality: str, encoding: Encoding) -> torch.Tensor:
        return model.likelihood(encoding.pooled_BD)

    def scale(self, model: ImpModel) -> torch.Tensor:
        return model.likelihood.scale(self.family)
