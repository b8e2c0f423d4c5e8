"""The experts' weights, stacked: what they compute of rows of tokens.

Shapes: T flat tokens, N rows in expert order, E experts held here, D width, F feed-forward width, I inputs and O outputs of a
linear layer.
"""

import torch
from torch import nn

from imp_ds.moe.kernels.compute import Count, experts_forward, linear_forward, linear_mixture, mixture

GATED = ("geglu", "swiglu")  # activations with a third matrix


class ExpertWeights(nn.Module):
    """Weights of which each is a stack over experts, [E, ...].

    num_experts: held here; a number of its own, since ZeRO 3 takes the weights' shapes away between calls.
    first: the index of the first one among all of the layer's: with expert parallelism a rank holds a slice.
    """

    def __init__(self, num_experts: int, first: int):
        super().__init__()
        self.num_experts, self.first = num_experts, first

    def part(self, num_experts: int, first: int) -> "ExpertWeights":
        """A fresh module of the same kind and shape with that many experts."""
        raise NotImplementedError

    def slice(self, first: int, count: int) -> "ExpertWeights":
        """Experts first .. first + count as a module of its own, on the same device; weights are copied."""
        like, part = next(self.parameters()), self.part(count, self.first + first)
        part.to(device=like.device, dtype=like.dtype)
        with torch.no_grad():
            for name, parameter in part.named_parameters():
                parameter.copy_(self.get_parameter(name)[first : first + count])
        return part


class Experts(ExpertWeights):
    """`num_experts` feed-forwards of the layer's, from number `first` on.

    "gelu" is two matrices, gelu(x w1) w2, as the IMP release has it; "geglu" is three, (gelu(x w1) * x w3) w2; so is "swiglu",
    (silu(x w1) * x w3) w2, as language models have it.
    """

    def __init__(self, width: int, feed_forward: int, num_experts: int, activation: str, *, first: int = 0):
        super().__init__(num_experts, first)
        self.width, self.feed_forward, self.activation = width, feed_forward, activation
        self.w1 = nn.Parameter(torch.empty(num_experts, width, feed_forward))
        self.w2 = nn.Parameter(torch.empty(num_experts, feed_forward, width))
        if activation in GATED:
            self.w3 = nn.Parameter(torch.empty(num_experts, width, feed_forward))

    def part(self, num_experts: int, first: int) -> "Experts":
        return Experts(self.width, self.feed_forward, num_experts, self.activation, first=first)

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
        weights = self.w1, self.w2, getattr(self, "w3", None), self.activation == "swiglu"
        if token_index_N is None:
            return experts_forward(x, rows, *weights)
        return mixture(x, token_index_N, weight_N, rows, *weights)


class LinearExperts(ExpertWeights):
    """`num_experts` matrices of one linear layer, from number `first` on. forward as that of Experts, [., I] -> [., O]."""

    def __init__(self, in_features: int, out_features: int, num_experts: int, *, first: int = 0):
        super().__init__(num_experts, first)
        self.in_features, self.out_features = in_features, out_features
        self.w = nn.Parameter(torch.empty(num_experts, in_features, out_features))

    def part(self, num_experts: int, first: int) -> "LinearExperts":
        return LinearExperts(self.in_features, self.out_features, num_experts, first=first)

    def forward(
        self,
        x: torch.Tensor,
        rows: Count = None,
        token_index_N: torch.Tensor | None = None,
        weight_N: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if token_index_N is None:
            return linear_forward(x, rows, self.w)
        return linear_mixture(x, token_index_N, weight_N, rows, self.w)
