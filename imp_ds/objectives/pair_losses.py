"""What two sets of unit vectors are compared by: noise-contrastive estimation, or a sigmoid for each pair.

Shapes: B rows of this rank, N candidates of all ranks.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from imp_ds.parallel.gather import gather_rows
from imp_ds.parallel.groups import rank, world_size


def nce_direction(logits_BN: torch.Tensor, positive_BN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One direction of the loss (a scalar, mean over the rows) and the share of rows whose best column is a positive."""
    positives_B = logits_BN.masked_fill(~positive_BN, float("-inf")).logsumexp(1)
    loss = (logits_BN.logsumexp(1) - positives_B).mean()
    return loss, best_is_positive(logits_BN, positive_BN)


def sigmoid_pairs(logits_BN: torch.Tensor, positive_BN: torch.Tensor) -> torch.Tensor:
    """Each pair of a row and a column by itself, as belonging together or not: the sum over columns, the mean over rows."""
    return -F.logsigmoid(logits_BN.where(positive_BN, -logits_BN)).sum(1).mean()


def best_is_positive(logits_BN: torch.Tensor, positive_BN: torch.Tensor) -> torch.Tensor:
    """The share of rows whose best column is a positive, a scalar."""
    return positive_BN.gather(1, logits_BN.detach().argmax(1, keepdim=True)).float().mean()


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


class SigmoidScale(nn.Module):
    """The learned scale and bias of the sigmoid loss: logits are cosines times exp(log_scale), plus the bias. forward: both.

    The scale is the inverse of a temperature; it is learned through its logarithm, as published.
    """

    def __init__(self, temperature: float, bias: float):
        super().__init__()
        self.initial = (-math.log(temperature), bias)
        self.log_scale, self.bias = (nn.Parameter(torch.tensor([value])) for value in self.initial)

    @torch.no_grad()
    def initialize_parameters(self) -> None:
        for parameter, value in zip((self.log_scale, self.bias), self.initial):
            parameter.fill_(value)

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.log_scale.float().exp(), self.bias.float()
