"""Decisions: which expert computes which token, and how much its answer counts; and what routers need to make them.

Decisions are made inside groups of tokens that are the same however a batch is spread over ranks, and are a list of rows in
expert order, so that moving tokens is an index, without one-hot tensors. Everything of a router is float32, whatever the
model's type.

Shapes: B samples, L tokens of a sample, T = B * L = G * S flat tokens, G groups, S tokens of a group, D width, E experts,
N rows, an expert and a token each; A attributes. In a condition S is the random sites of a block.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch


class Condition(NamedTuple):
    """What is known of all tokens of a segment alike, for gates that ask for nothing else (`imp_ds.moe.soft_merging`).

    known: what they ask for: an id, int64 [1], or named bits, 0 or 1, float32 [1, A]; None where no gate asks.
    key_1S: a random key for each random site of a block, int64 [1, S], of the step and so the same on all ranks; None: nothing
        is random.
    copy: which of the copies of a merged model is this condition's.
    target: whether the segment is of the candidates, for those who treat them differently.
    """

    known: torch.Tensor | None = None
    key_1S: torch.Tensor | None = None
    copy: int = 0
    target: bool = False


class Segment(NamedTuple):
    """`length` consecutive tokens of every sample that have one condition; the segments of a sequence follow each other."""

    length: int
    condition: Condition


class Counted(NamedTuple):
    """As how many tokens an example counts where it routes alone, outside of training: its experts' slots hang on that, not on
    the examples beside it, nor on the padding.

    most: of any example of these shapes; tokens_B: of each, int64 [B], where padding makes them differ; None: all count as most.
    """

    most: int
    tokens_B: torch.Tensor | None = None


@dataclass(frozen=True)
class RoutingContext:
    """What a router may know of a call beside the tokens.

    group_tokens: S, tokens that compete with each other; T is a multiple of it and groups are contiguous.
    valid_T: bool [T], False where a token is padding; None when nothing is.
    key_B: int64 [B], the samples' random keys (`imp_ds.randomness`); None when nothing is random.
    length: L; None where nobody asks for it: without it a router cannot see a token's context.
    mask_LL: bool, True where the token of the row may see that of the column; None: everywhere.
    counted: where each group is one example, as how many tokens it counts; None: as all of the group, padding with them.
    """

    group_tokens: int
    valid_T: torch.Tensor | None = None
    key_B: torch.Tensor | None = None
    length: int | None = None
    mask_LL: torch.Tensor | None = None
    counted: Counted | None = None


class RouterReport(NamedTuple):
    """What one MoE layer reports of one call. The losses carry gradient, the rest does not.

    z_loss: mean over groups of the group's mean (logsumexp of the logits)^2, padding left out.
    balance_loss: mean over groups of E * sum_e (share of the choices that fell on e) * (mean probability of e); 0 where every
        expert gets equally much by construction.
    usage_E: share of the whole combine weight that each expert gave; sums to 1.
    dropped_fraction: fraction of the tokens (padding left out) that no expert took.
    mean_combine_weight: mean combine weight of the rows that hold a token.
    """

    z_loss: torch.Tensor
    balance_loss: torch.Tensor
    usage_E: torch.Tensor
    dropped_fraction: torch.Tensor
    mean_combine_weight: torch.Tensor


class Routing(NamedTuple):
    """A decision: rows in expert order.

    token_index_N: the flat token of each row; weight_N: its combine weight, float32, 0 for a slot that holds no token.
    count_E: rows of each expert, int64; None when all have N / E, which is known without asking the device.
    logits_TE: what it was made from, float32, with gradient.
    x_TD: the tokens that it is about, as their experts should read them (see `imp_ds.moe.kernels.compute.router_logits`).
    key_T: random keys of the tokens, int64, for experts with dropout; None: nothing of them is random.

    A tuple, because ZeRO 3 finds the tensors of a module's output in tuples, and gathers its weights for the backward so.
    """

    token_index_N: torch.Tensor
    weight_N: torch.Tensor
    count_E: torch.Tensor | None
    report: RouterReport
    logits_TE: torch.Tensor
    x_TD: torch.Tensor
    key_T: torch.Tensor | None = None


def capacity(group_tokens: int, num_experts: int, capacity_factor: float) -> int:
    """Slots of one expert in one group: round(factor * S / E), at least 1 and at most S (IMP release, `routing.py`). A half is
    rounded to the even number, as Python's round there does."""
    return max(1, min(group_tokens, round(capacity_factor * group_tokens / num_experts)))


def expert_slots(
    group_tokens: int, num_experts: int, capacity_factor: float, counted: Counted | None
) -> tuple[int, torch.Tensor | None]:
    """Slots of one expert in a group, and how many of them it may fill in each, [G]; None: all."""
    if counted is None:
        return capacity(group_tokens, num_experts, capacity_factor), None
    slots = min(group_tokens, capacity(counted.most, num_experts, capacity_factor))
    if counted.tokens_B is None:
        return slots, None
    return slots, (capacity_factor * counted.tokens_B.double() / num_experts).round().clamp(min=1)


def router_z_loss(logits_GSE: torch.Tensor, valid_GS: torch.Tensor | None) -> torch.Tensor:
    """ST-MoE's z-loss (Zoph et al., 2022, arXiv 2202.08906). A mean of group means depends on no neighbour, so it is the
    same however the groups are spread over ranks."""
    return _group_means(logits_GSE.logsumexp(-1, keepdim=True).square(), valid_GS).mean()


def _group_means(values_GSE: torch.Tensor, valid_GS: torch.Tensor | None) -> torch.Tensor:
    """Mean over the valid tokens of each group, [G, E]; zeros for a group without any."""
    if valid_GS is None:
        return values_GSE.mean(1)
    weight_GS1 = valid_GS.to(values_GSE.dtype).unsqueeze(-1)
    return (values_GSE * weight_GS1).sum(1) / weight_GS1.sum(1).clamp(min=1)


def balance_loss(probability_GSE: torch.Tensor, share_GSE: torch.Tensor, valid_GS: torch.Tensor | None) -> torch.Tensor:
    """Switch Transformer's load-balancing loss (Fedus et al., 2021, arXiv 2101.03961, equation 4), in each group.

    share_GSE: the part of each token's choices that fell on each expert, without gradient; sums to 1 over E. The loss is 1
    when all experts are chosen equally often.
    """
    chosen_GE, probability_GE = _group_means(share_GSE, valid_GS), _group_means(probability_GSE, valid_GS)
    return (chosen_GE * probability_GE).sum(-1).mean() * probability_GSE.shape[-1]


def take_best(
    score_GES: torch.Tensor, slots: int, filled_G: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each expert takes its `slots` best-scored tokens of each group: (token_index_N, weight_N) in expert order.

    A negative score means "not this one": such a token fills a slot only when too few others are there, and counts for
    nothing in it. filled_G: how many of its slots an expert fills in each group, with the best; None: all.
    """
    groups, experts, size = score_GES.shape
    weight_GEC, place_GEC = score_GES.topk(slots, dim=-1, sorted=filled_G is not None)
    if filled_G is not None:
        weight_GEC = weight_GEC.masked_fill(torch.arange(slots, device=filled_G.device) >= filled_G[:, None, None], 0.0)
    start_G11 = (torch.arange(groups, device=score_GES.device) * size)[:, None, None]
    index_EGC = (place_GEC + start_G11).transpose(0, 1)
    return index_EGC.reshape(-1), weight_GEC.clamp(min=0.0).transpose(0, 1).reshape(-1)
