"""The experts' feed-forwards, as stacked weights and batched matrix products: no loop over experts.

Shapes: E experts held here, C rows of an expert, D width, F feed-forward width.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Experts(nn.Module):
    """`last - first` of the layer's experts: rows [E, C, D] -> [E, C, D].

    "gelu" is two matrices, gelu(x w1) w2, as the IMP release has it; "geglu" is three, (gelu(x w1) * x w3) w2.
    `first` is the index of the first expert held here among all of the layer's: with expert parallelism a rank holds a slice.
    """

    def __init__(self, width: int, feed_forward: int, num_experts: int, activation: str, *, first: int = 0):
        super().__init__()
        self.width, self.feed_forward, self.activation, self.first = width, feed_forward, activation, first
        self.w1 = nn.Parameter(torch.empty(num_experts, width, feed_forward))
        self.w2 = nn.Parameter(torch.empty(num_experts, feed_forward, width))
        if activation == "geglu":
            self.w3 = nn.Parameter(torch.empty(num_experts, width, feed_forward))

    @property
    def num_experts(self) -> int:
        return self.w1.shape[0]

    def slice(self, first: int, count: int) -> "Experts":
        """Experts first .. first + count as a module of its own, on the same device; weights are copied."""
        part = Experts(self.width, self.feed_forward, count, self.activation, first=self.first + first)
        part.to(device=self.w1.device, dtype=self.w1.dtype)
        with torch.no_grad():
            for name, parameter in part.named_parameters():
                parameter.copy_(self.get_parameter(name)[first : first + count])
        return part

    def forward(self, x_ECD: torch.Tensor) -> torch.Tensor:
        dtype = x_ECD.dtype
        hidden_ECF = F.gelu(torch.bmm(x_ECD, self.w1.to(dtype)), approximate="tanh")
        if self.activation == "geglu":
            hidden_ECF = hidden_ECF * torch.bmm(x_ECD, self.w3.to(dtype))
        return torch.bmm(hidden_ECF, self.w2.to(dtype))
