"""The experts' feed-forwards as stacked weights.

Shapes: T flat tokens, N rows in expert order, E experts held here, D width, F feed-forward width.
"""

import torch
from torch import nn

from imp_ds.moe.compute import Count, experts_forward, mixture


class Experts(nn.Module):
    """`num_experts` of the layer's experts, from number `first` on.

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

    def forward(
        self,
        x: torch.Tensor,
        rows: Count = None,
        token_index_N: torch.Tensor | None = None,
        weight_N: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Rows [N, D] -> answers [N, D]; or, with `token_index_N` and `weight_N`, tokens [T, D] -> weighted sums [T, D].

        rows: how many each expert has, as `rows_of_experts` gives it; None when all have N / E.
        """
        weights = self.w1, self.w2, getattr(self, "w3", None)
        if token_index_N is None:
            return experts_forward(x, rows, *weights)
        return mixture(x, token_index_N, weight_N, rows, *weights)
