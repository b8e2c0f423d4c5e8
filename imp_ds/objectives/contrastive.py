"""Cross-modal noise-contrastive estimation in both directions over the global batch (IMP release, `optimization/objectives.py`).

For a pair of modalities with unit vectors z1, z2 and a learned temperature t, T = relu(t) + 1e-6:

    L_1->2 = mean_b [ logsumexp_c(z1_b . z2_c / T) - logsumexp_{c in positives(b)}(z1_b . z2_c / T) ]
    L_pair = (L_1->2 + L_2->1) / 2,   L = mean over pairs.

With positives = the diagonal this is the released loss for one instance per sample; with positives = samples of equal
label it is its multiple-instance form, for corpora that repeat their captions.

Shapes: B samples of this rank, N of all ranks, C width of a common space.
"""

import torch
import torch.nn.functional as F
from torch import nn

from imp_ds.objectives.objective import Objective
from imp_ds.parallel.gather import gather_rows
from imp_ds.parallel.groups import rank, world_size


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

    def __init__(self, config, pairs: list[list[str]], positives: str = "diagonal", temperature: float = 0.2):
        super().__init__()
        self.pairs = [tuple(pair) for pair in pairs]
        self.positives = positives
        self.temperatures = nn.ModuleDict({f"{a}_{b}": Temperature(temperature) for a, b in self.pairs})

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
