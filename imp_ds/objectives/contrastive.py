"""Cross-modal noise-contrastive estimation in both directions over the global batch (IMP release, `optimization/objectives.py`).

For a pair of modalities with unit vectors z1, z2 and a learned temperature t, T = relu(t) + 1e-6:

    L_1->2 = mean_b [ logsumexp_c(z1_b . z2_c / T) - logsumexp_{c in positives(b)}(z1_b . z2_c / T) ]
    L_pair = (L_1->2 + L_2->1) / 2,   L = mean over pairs.

With positives = the diagonal this is the released loss for one instance per sample; with positives = samples of equal
label it is its multiple-instance form, for corpora that repeat their captions.

Shapes: B samples of this rank, N of all ranks, C width of a common space.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import nn

from imp_ds.costs import FLOAT32, STATES, VECTORS, Kernel, passes, product
from imp_ds.errors import UserError
from imp_ds.modalities import ModalityName
from imp_ds.models.imp.conditions import Sides
from imp_ds.objectives.objective import Needs, Objective, ObjectiveRecord, StepShape
from imp_ds.objectives.registry import register
from imp_ds.parallel.gather import gather_rows
from imp_ds.parallel.groups import rank, world_size


@register
class Contrastive(ObjectiveRecord):
    """Cross-modal noise-contrastive estimation over pairs of modalities (IMP release, `optimization/objectives.py`)."""

    kind: Literal["contrastive"] = Field("contrastive", description="which objective this is")
    pairs: list[tuple[ModalityName, ModalityName]] = Field(
        min_length=1, description="modalities that are matched, in both directions"
    )
    positives: Literal["diagonal", "equal"] = Field(
        "diagonal", description='"diagonal": the other half of the same sample; "equal": every sample of equal label'
    )
    temperature: float = Field(0.2, gt=0, description="initial learned temperature of each pair")

    @model_validator(mode="after")
    def _pairs_differ(self):
        if any(a == b for a, b in self.pairs):
            raise ValueError("a contrastive pair needs two different modalities")
        return self

    def needs(self):
        return Needs(frozenset(m for pair in self.pairs for m in pair), label=self.positives == "equal")

    def sides(self):
        first, second = zip(*self.pairs)  # a pair (a, b) is a question of modality a whose answer is of modality b
        return Sides(frozenset(first), frozenset(second))

    def kernels(self, shape: StepShape) -> list[Kernel]:
        """Both modalities' projections, and the similarities of each with the other of all ranks, in float32."""
        samples, size, width, common = shape.samples, shape.value_bytes, shape.config.hidden_size, shape.config.common_dim
        direction = [
            product(samples, width, common, size, of=STATES),
            product(samples, common, common, size),
            passes("gelu", 5 * samples * common * size, 1),
            passes("norm", 5 * samples * common * size, 2),
            product(samples, common, shape.everyone, FLOAT32, of=VECTORS),
            passes("copy", 20 * samples * shape.everyone * FLOAT32, 8),
        ]
        return direction * (2 * len(self.pairs))

    def loss_values(self, shape):
        return 2 * len(self.pairs) * similarity_values(shape)

    def trained_temperature(self, modality):
        found = (f"temperatures.{a}_{b}.value" for a, b in self.pairs if {a, b} == {modality, "text"})
        return next(found, None)

    def common_spaces(self):
        return self.pairs

    def compared_vectors(self):
        return 2 * len(self.pairs)

    def parameters(self):
        return tuple(f"imp.projections.{a}_to_{b}." for pair in self.pairs for a, b in (pair, pair[::-1]))

    def check_model(self, config, task):
        for pair in self.pairs:
            if set(pair) not in [set(space) for space in config.pairs]:
                raise UserError(f"task {task}: the model has no common space for a pair", got=pair, allowed=config.pairs)

    def describe(self):
        return "NCE of " + ", ".join("-".join(pair) for pair in self.pairs)

    def build(self, config, known):
        return ContrastiveObjective(self)


def similarity_values(shape: StepShape) -> float:
    """Values of one direction: the similarities, masked and not, and both vectors of all ranks."""
    samples, everyone, common = shape.samples, shape.everyone, shape.config.common_dim
    return 4 * samples * everyone + everyone * common + 6 * samples * common


def nce_direction(logits_BN: torch.Tensor, positive_BN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One direction of the loss (a scalar, mean over the rows) and the share of rows whose best column is a positive."""
    positives_B = logits_BN.masked_fill(~positive_BN, float("-inf")).logsumexp(1)
    loss = (logits_BN.logsumexp(1) - positives_B).mean()
    best_B = logits_BN.detach().argmax(1, keepdim=True)
    return loss, positive_BN.gather(1, best_B).float().mean()


def positives(which: str, rows: int, device: torch.device, targets: dict[str, torch.Tensor]) -> torch.Tensor:
    """Which samples of all ranks match each of this rank's `rows`, bool [B, N]: "diagonal", itself; "equal", those of equal
    targets["label"]."""
    if which == "equal":
        label_B = targets["label"]
        return label_B[:, None] == gather_rows(label_B)[None, :]
    mine_B = torch.arange(rows, device=device) + rank() * rows
    return mine_B[:, None] == torch.arange(rows * world_size(), device=device)


class Temperature(nn.Module):
    """One learned temperature, used directly, not through its logarithm. A module, so that ZeRO 3 gathers it when called."""

    def __init__(self, initial: float):
        super().__init__()
        self.initial = initial
        self.value = nn.Parameter(torch.tensor([initial]))  # of one element: DeepSpeed's first broadcast refuses scalars

    def initialize_parameters(self) -> None:
        with torch.no_grad():
            self.value.fill_(self.initial)

    def forward(self) -> torch.Tensor:
        return F.relu(self.value.float()) + 1e-6


class ContrastiveObjective(Objective):
    """NCE over `pairs` of modalities. forward: (model, encodings by modality, targets) -> (loss, metrics).

    The returned loss is this rank's mean; averaged over the ranks it is the loss of the joined batch, and so is its gradient.
    """

    compares_samples = True  # a sample's loss depends on all others

    def __init__(self, record: Contrastive):
        super().__init__()
        self.pairs, self.positives = record.pairs, record.positives
        self.temperatures = nn.ModuleDict({f"{a}_{b}": Temperature(record.temperature) for a, b in self.pairs})

    def forward(self, model, encodings: dict, targets: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        first = encodings[self.pairs[0][0]].pooled_BD
        positive_BN = positives(self.positives, first.shape[0], first.device, targets)
        losses, metrics = [], {}
        for a, b in self.pairs:
            z1_BC, z2_BC = model.project(encodings[a].pooled_BD, a, b), model.project(encodings[b].pooled_BD, b, a)
            temperature = self.temperatures[f"{a}_{b}"]()
            forth, forth_accuracy = nce_direction(z1_BC @ gather_rows(z2_BC).T / temperature, positive_BN)
            back, back_accuracy = nce_direction(z2_BC @ gather_rows(z1_BC).T / temperature, positive_BN)
            losses.append((forth + back) / 2)
            metrics[f"accuracy/{a}_to_{b}"] = forth_accuracy
            metrics[f"accuracy/{b}_to_{a}"] = back_accuracy
            metrics[f"temperature/{a}_{b}"] = temperature.detach().squeeze(0)
        return torch.stack(losses).mean(), metrics
