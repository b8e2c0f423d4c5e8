"""Cross-modal contrastive learning over the global batch: a softmax over all candidates, or a sigmoid for each pair.

For a pair of modalities with unit vectors z1, z2:

"softmax", noise-contrastive estimation in both directions (IMP release, `optimization/objectives.py`), with a learned temperature
t, T = relu(t) + 1e-6:

    L_1->2 = mean_b [ logsumexp_c(z1_b . z2_c / T) - logsumexp_{c in positives(b)}(z1_b . z2_c / T) ]
    L_pair = (L_1->2 + L_2->1) / 2,   L = mean over pairs.

With positives = the diagonal this is the released loss for one instance per sample; with positives = samples of equal
label it is its multiple-instance form, for corpora that repeat their captions.

"sigmoid" (SigLIP, arXiv 2303.15343), with a learned logarithm t' and a learned bias, y = 1 for positives and -1 for others:

    L_pair = - mean_b sum_c log sigmoid(y_bc (exp(t') z1_b . z2_c + bias)),   L = mean over pairs.

A side of a pair may be two modalities together: one sequence, whose tokens see each other in every layer.

With `matryoshka` the losses of the vectors' first d values, made unit vectors again, are added to that of the whole vectors
(arXiv 2205.13147).

Shapes: B samples of this rank, N of all ranks, C width of a common space.
"""

import math
from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from imp_ds.costs import FLOAT32, STATES, VECTORS, Kernel, Sequences, passes, product
from imp_ds.errors import UserError
from imp_ds.modalities import JOINED, SideName
from imp_ds.models.imp.conditions import Sides
from imp_ds.models.imp.features import first_values
from imp_ds.objectives.objective import Needs, Objective, ObjectiveRecord, StepShape
from imp_ds.objectives.pair_losses import (
    SigmoidScale,
    Temperature,
    best_is_positive,
    nce_direction,
    positives,
    sigmoid_pairs,
)
from imp_ds.objectives.registry import register
from imp_ds.parallel.gather import gather_rows

_SIGMOID_TEMPERATURE = 0.1  # t' = log 10, as published


@register
class Contrastive(ObjectiveRecord):
    """Cross-modal noise-contrastive estimation over pairs of modalities (IMP release, `optimization/objectives.py`)."""

    kind: Literal["contrastive"] = Field("contrastive", description="which objective this is")
    pairs: list[tuple[SideName, SideName]] = Field(
        min_length=1, description='modalities that are matched, in both directions; "vision+audio": both together'
    )
    positives: Literal["diagonal", "equal"] = Field(
        "diagonal", description='"diagonal": the other half of the same sample; "equal": every sample of equal label'
    )
    loss: Literal["softmax", "sigmoid"] = Field(
        "softmax", description="over all candidates, or for each pair of samples by itself (SigLIP)"
    )
    temperature: float = Field(0.2, gt=0, description="initial learned temperature of each pair; of sigmoid by default 0.1")
    bias: float = Field(-10.0, description="sigmoid: initial learned bias of each pair")
    matryoshka: list[int] = Field([], description="the first so many values of the vectors are compared too, as vectors alone")
    matryoshka_weights: list[float] = Field([], description="of their losses, that of the whole vectors has 1; none: 1 each")

    @model_validator(mode="before")
    @classmethod
    def _sigmoid_is_as_published(cls, fields):
        if isinstance(fields, dict) and fields.get("loss") == "sigmoid":
            return {"temperature": _SIGMOID_TEMPERATURE, **fields}
        return fields

    @model_validator(mode="after")
    def _widths_are_weighted(self):
        if sorted({*self.matryoshka}) != self.matryoshka or min(self.matryoshka, default=1) < 1:
            raise ValueError(f"matryoshka wants ascending numbers of values, 1 at least, got {self.matryoshka}")
        if self.matryoshka_weights and len(self.matryoshka_weights) != len(self.matryoshka):
            raise ValueError(f"{len(self.matryoshka_weights)} matryoshka_weights for {len(self.matryoshka)} in matryoshka")
        return self

    @model_validator(mode="after")
    def _pairs_differ(self):
        if any({*a.split(JOINED)} & {*b.split(JOINED)} for a, b in self.pairs):
            raise ValueError("a contrastive pair needs two different modalities")
        return self

    def needs(self):
        named = frozenset(m for side in self.compared() for m in side.split(JOINED))
        return Needs(named, label=self.positives == "equal")

    def sides(self):
        # a pair (a, b) is a question of modality a whose answer is of modality b
        first, second = ([m for side in sides for m in side.split(JOINED)] for sides in zip(*self.pairs))
        return Sides(frozenset(first), frozenset(second))

    def compared(self) -> list[str]:
        """The sides of all pairs, each once: modalities, alone or together."""
        return list(dict.fromkeys(side for pair in self.pairs for side in pair))

    def sequences(self, tokens, batch_size):
        if not any(JOINED in side for side in self.compared()):
            return super().sequences(tokens, batch_size)
        parts = {side: tuple((m, tokens[m]) for m in side.split(JOINED)) for side in self.compared()}
        return {side: Sequences(batch_size, segments) for side, segments in parts.items()}

    def kernels(self, shape: StepShape) -> list[Kernel]:
        """Both modalities' projections, and the similarities of each with the other of all ranks, in float32."""
        samples, size, width, common = shape.samples, shape.value_bytes, shape.config.hidden_size, shape.config.common_dim
        projected = [
            product(samples, width, common, size, of=STATES),
            product(samples, common, common, size),
            passes("gelu", 5 * samples * common * size, 1),
            passes("norm", 5 * samples * common * size, 2),
        ]
        compared = [
            kernel
            for values in (*self.matryoshka, common)
            for kernel in (
                product(samples, values, shape.everyone, FLOAT32, of=VECTORS),
                passes("copy", 20 * samples * shape.everyone * FLOAT32, 8),
            )
        ]
        both = (projected + compared) * 2 if self.loss == "softmax" else projected * 2 + compared
        return both * len(self.pairs)

    def loss_values(self, shape):
        return 2 * len(self.pairs) * (1 + len(self.matryoshka)) * similarity_values(shape)

    def trained_temperature(self, modality):
        held = "value" if self.loss == "softmax" else "log_scale"
        found = (f"temperatures.{a}_{b}.{held}" for a, b in self.pairs if {a, b} == {modality, "text"})
        return next(found, None)

    def temperature_of(self, stored):
        return max(stored, 0.0) + 1e-6 if self.loss == "softmax" else math.exp(-stored)

    def common_spaces(self):
        return self.pairs

    def compared_vectors(self):
        return 2 * len(self.pairs)

    def parameters(self):
        return tuple(f"imp.projections.{a}_to_{b}." for pair in self.pairs for a, b in (pair, pair[::-1]))

    def check_model(self, config, task):
        super().check_model(config, task)
        for pair in self.pairs:
            if set(pair) not in [set(space) for space in config.pairs]:
                raise UserError(f"task {task}: the model has no common space for a pair", got=pair, allowed=config.pairs)
        if self.matryoshka and self.matryoshka[-1] >= config.common_dim:
            raise UserError(
                f"task {task}: the first values of a vector are fewer than all", got=f"matryoshka = {self.matryoshka}",
                allowed=f"less than model.common_dim = {config.common_dim}, which is compared anyway",
            )  # fmt: skip

    def describe(self):
        name = "NCE" if self.loss == "softmax" else "sigmoid loss"
        first = f", also of the first {', '.join(map(str, self.matryoshka))} values" if self.matryoshka else ""
        return f"{name} of " + ", ".join("-".join(pair) for pair in self.pairs) + first

    def build(self, config, known):
        return ContrastiveObjective(self)


def similarity_values(shape: StepShape) -> float:
    """Values of one direction: the similarities, masked and not, and both vectors of all ranks."""
    samples, everyone, common = shape.samples, shape.everyone, shape.config.common_dim
    return 4 * samples * everyone + everyone * common + 6 * samples * common


class ContrastiveObjective(Objective):
    """The loss over `pairs` of modalities. forward: (model, encodings by modality, targets) -> (loss, metrics).

    The returned loss is this rank's mean; averaged over the ranks it is the loss of the joined batch, and so is its gradient.
    """

    compares_samples = True  # a sample's loss depends on all others

    def __init__(self, record: Contrastive):
        super().__init__()
        self.pairs, self.positives, self.loss = record.pairs, record.positives, record.loss
        self.compared = record.compared()
        self.shorter = list(zip(record.matryoshka, record.matryoshka_weights or [1.0] * len(record.matryoshka)))
        sigmoid = record.loss == "sigmoid"
        self.temperatures = nn.ModuleDict(
            {
                f"{a}_{b}": SigmoidScale(record.temperature, record.bias) if sigmoid else Temperature(record.temperature)
                for a, b in self.pairs
            }
        )

    def encode(self, model, batch, encodings):
        """Modalities alone as usual; what is compared together as one sequence, beside what else is compared."""
        if not any(JOINED in side for side in self.compared):
            super().encode(model, batch, encodings)
            return
        for side in self.compared:
            if side not in encodings:
                encodings[side] = model.encode_side(side, batch.inputs, batch.task, batch.key_B)

    def forward(self, model, encodings: dict, targets: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        first = encodings[self.pairs[0][0]].pooled_BD
        positive_BN = positives(self.positives, first.shape[0], first.device, targets)
        compare = self._by_softmax if self.loss == "softmax" else self._by_sigmoid
        losses, metrics = [], {}
        for a, b in self.pairs:
            own = model.project(encodings[a].pooled_BD, a, b), model.project(encodings[b].pooled_BD, b, a)
            everyone = gather_rows(own[0]), gather_rows(own[1])
            scale = self.temperatures[f"{a}_{b}"]()
            loss, accuracies = compare(own, everyone, scale, positive_BN)
            for values, weight in self.shorter:
                short = ([first_values(z, values) for z in vectors] for vectors in (own, everyone))
                loss = loss + weight * compare(*short, scale, positive_BN)[0]
            losses.append(loss)
            metrics |= dict(zip((f"accuracy/{a}_to_{b}", f"accuracy/{b}_to_{a}"), accuracies))
            metrics |= {f"{name}/{a}_{b}": value for name, value in self._learned(scale)}
        return torch.stack(losses).mean(), metrics

    def _learned(self, scale) -> Iterator[tuple[str, torch.Tensor]]:
        """The temperature, and the bias of a sigmoid, for the curves."""
        if self.loss == "softmax":
            yield "temperature", scale.detach().squeeze(0)
        else:
            yield "temperature", 1.0 / scale[0].detach().squeeze(0)
            yield "bias", scale[1].detach().squeeze(0)

    def _by_softmax(self, own, everyone, temperature: torch.Tensor, positive_BN: torch.Tensor):
        """The loss of a pair, and the accuracies there and back."""
        forth, forth_accuracy = nce_direction(own[0] @ everyone[1].T / temperature, positive_BN)
        back, back_accuracy = nce_direction(own[1] @ everyone[0].T / temperature, positive_BN)
        return (forth + back) / 2, (forth_accuracy, back_accuracy)

    def _by_sigmoid(self, own, everyone, scale: tuple[torch.Tensor, torch.Tensor], positive_BN: torch.Tensor):
        """As `_by_softmax`. Rows of one side against all of the other are all pairs already."""
        logits_BN = scale[0] * (own[0] @ everyone[1].T) + scale[1]
        with torch.no_grad():
            back_BN = own[1] @ everyone[0].T
        accuracies = best_is_positive(logits_BN, positive_BN), best_is_positive(back_BN, positive_BN)
        return sigmoid_pairs(logits_BN, positive_BN), accuracies
