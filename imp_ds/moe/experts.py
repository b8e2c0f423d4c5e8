"""The experts' weights, stacked: what they compute of rows of tokens.

Shapes: T flat tokens, N rows in expert order, E experts held here, D width, F feed-forward width, I inputs and O outputs of a
linear layer.
"""

import torch
from torch import nn

from imp_ds.moe.kernels.compute import (
    Count,
    activate,
    experts_forward,
    linear_forward,
    linear_mixture,
    mixture,
    sum_rows,
    take_rows,
    weigh_rows,
)
from imp_ds.moe.low_rank import LowRankStacks

GATED = ("geglu", "swiglu")  # activations with a third matrix
SILU = ("swiglu", "silu")  # those by silu, the others are by the tanh form of gelu


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

    "gelu" is two matrices, gelu(x w1) w2, as the IMP release has it, and so is "silu"; "geglu" is three,
    (gelu(x w1) * x w3) w2, and so is "swiglu", (silu(x w1) * x w3) w2, as language models have it.
    """

    def __init__(self, width: int, feed_forward: int, num_experts: int, activation: str, *, first: int = 0):
        super().__init__(num_experts, first)
        self.width, self.feed_forward, self.activation = width, feed_forward, activation
        self.w1 = nn.Parameter(torch.empty(num_experts, width, feed_forward))
        self.w2 = nn.Parameter(torch.empty(num_experts, feed_forward, width))
        if activation in GATED:
            self.w3 = nn.Parameter(torch.empty(num_experts, width, feed_forward))
        self.lora: LowRankStacks | None = None

    def part(self, num_experts: int, first: int) -> "Experts":
        part = Experts(self.width, self.feed_forward, num_experts, self.activation, first=first)
        part.lora = None if self.lora is None else self.lora.part(num_experts, first)
        return part

    def forward(
        self,
        x: torch.Tensor,
        rows: Count = None,
        token_index_N: torch.Tensor | None = None,
        weight_N: torch.Tensor | None = None,
        key: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Rows [N, D] -> answers [N, D]; or, with `token_index_N` and `weight_N`, tokens [T, D] -> weighted sums [T, D].

        rows: how many each expert has, as `rows_of_experts` gives it; None when all have N / E. key: random keys of the rows, or
        of the tokens, int64, for the dropout of low-rank changes; None: nothing is dropped.
        """
        if self.lora is not None:
            return self._changed(x, rows, token_index_N, weight_N, key)
        weights = self.w1, self.w2, getattr(self, "w3", None), self.activation in SILU
        if token_index_N is None:
            return experts_forward(x, rows, *weights)
        return mixture(x, token_index_N, weight_N, rows, *weights)

    def _changed(self, x, rows: Count, token_index_N, weight_N, key) -> torch.Tensor:
        """`forward` with low-rank changes of some matrices."""
        if token_index_N is None:
            return self._changed_rows(x, rows, key)
        key_N = None if key is None else key[token_index_N]
        y_ND = self._changed_rows(take_rows(x, token_index_N), rows, key_N)
        return sum_rows(weigh_rows(y_ND, weight_N), token_index_N, x.shape[0])

    def _changed_rows(self, x_ND: torch.Tensor, rows: Count, key_N: torch.Tensor | None) -> torch.Tensor:
        def product(name: str, x_NI: torch.Tensor) -> torch.Tensor:
            y_NO, change = linear_forward(x_NI, rows, self.get_parameter(name)), getattr(self.lora, name, None)
            return y_NO if change is None else y_NO.add_(change(x_NI, rows, key_N))

        hidden = activate(product("w1", x_ND), self.activation in SILU)
        if self.activation in GATED:
            hidden = hidden * product("w3", x_ND)
        return product("w2", hidden)


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
