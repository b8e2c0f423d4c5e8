"""Gates that ask for nothing but the condition of a segment, and experts that are merged before any token meets them (soft
merging).

Uni-Perceiver-MoE (arXiv 2206.04674, section 3.3 and appendix; release, `gate.py`, `experts.py`): where the decision is the same
for all tokens, sum_e g_e (x W_e) = x (sum_e g_e W_e), so the experts of a linear layer become one matrix for each condition:
routing costs the sum of k matrices, whatever the number of tokens, and where experts are spread over ranks, no token moves.

Shapes: E experts, K experts of a condition, A attributes, D width, I inputs and O outputs of a linear layer.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from imp_ds.moe.experts import ExpertWeights
from imp_ds.moe.routers.top_k import best_experts
from imp_ds.moe.routing import RouterReport
from imp_ds.randomness import normal


class MergeWeights(NamedTuple):
    """A decision: the weights of all experts, float32 [E], and those that are not 0 with their experts, [K]. A tuple, as Routing.

    Weights sum to 1, or are the probability of the best expert where there is one alone, as in `imp_ds.moe.routers.top_k`.
    """

    weight_E: torch.Tensor
    weight_K: torch.Tensor
    expert_K: torch.Tensor


class AttributeEmbedding(nn.Module):
    """LayerNorm(W a + b) of named bits a, [1, A] -> [1, D] (release, `gate.py`). Any combination of bits has one."""

    def __init__(self, attributes: int, width: int, eps: float = 1e-6):
        super().__init__()
        self.linear = nn.Linear(attributes, width)
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, attribute_1A: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(attribute_1A.to(self.norm.weight.dtype)))


class MergeRouter(nn.Module):
    """One decision for all tokens of a condition: the `experts_per_token` best experts by softmax of a linear layer.

    Args:
        ids, attributes: how many there are of the one or the other; a condition is an id, or a combination of attributes.
        noise: standard deviation of the Gaussian noise on the logits in units of 1 / E, drawn where the condition has keys.
    """

    def __init__(
        self, width: int, num_experts: int, *, experts_per_token: int, noise: float = 0.0, ids: int = 0, attributes: int = 0
    ):
        super().__init__()
        self.num_experts, self.experts_per_token, self.noise = num_experts, experts_per_token, noise
        self.embedding = AttributeEmbedding(attributes, width) if attributes else nn.Embedding(ids, width)
        self.weight = nn.Parameter(torch.empty(num_experts, width))

    def forward(self, known: torch.Tensor, key_1: torch.Tensor | None = None) -> MergeWeights:
        """known: an id, int64 [1], or bits, float32 [1, A]; key_1: the step's random key for this site, int64 [1]."""
        seen_1D = self.embedding(known)
        with torch.autocast(seen_1D.device.type, enabled=False):
            logits_1E = F.linear(seen_1D.float(), self.weight.float())
        if self.noise and key_1 is not None:
            logits_1E = logits_1E + normal(key_1, self.num_experts) * (self.noise / self.num_experts)
        _, weight_1K, expert_1K = best_experts(logits_1E, self.experts_per_token)
        weight_1E = torch.zeros_like(logits_1E).scatter(1, expert_1K, weight_1K)
        return MergeWeights(weight_1E[0], weight_1K[0], expert_1K[0])


def merge_report(weights: MergeWeights) -> RouterReport:
    """Nothing competes and nothing is dropped: the losses are zeros."""
    weight_E = weights.weight_E.detach()
    zero = weight_E.new_zeros(())
    return RouterReport(zero, zero, weight_E / weight_E.sum(), zero, weights.weight_K.detach().mean())


class MergedExperts(ExpertWeights):
    """`num_experts` matrices of one linear layer. forward: MergeWeights -> their weighted sum [I, O], in the type of the weights;
    with a slice of the experts, the slice's part of it."""

    def __init__(self, in_features: int, out_features: int, num_experts: int, *, first: int = 0):
        super().__init__(num_experts, first)
        self.in_features, self.out_features = in_features, out_features
        self.w = nn.Parameter(torch.empty(num_experts, in_features, out_features))

    def part(self, num_experts: int, first: int) -> "MergedExperts":
        return MergedExperts(self.in_features, self.out_features, num_experts, first=first)

    def forward(self, weights: MergeWeights) -> torch.Tensor:
        held = self.num_experts
        if held == len(weights.weight_E):
            weight_K, w_KIO = weights.weight_K, self.w.index_select(0, weights.expert_K)
        else:
            weight_K, w_KIO = weights.weight_E[self.first : self.first + held], self.w
        return (weight_K.to(w_KIO.dtype) @ w_KIO.flatten(1)).view(self.in_features, self.out_features)


class LocalMerger:
    """All experts are here. (weights, experts) -> the merged matrix, [I, O]."""

    def __call__(self, weights: MergeWeights, experts: MergedExperts) -> torch.Tensor:
        return experts(weights)
