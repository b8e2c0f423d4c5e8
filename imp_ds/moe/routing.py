"""Routers: which expert computes which token, and how much its answer counts.

Expert choice (Zhou et al., 2022, arXiv 2202.09368) as the IMP release has it (`modeling/routing.py`): softmax over the
experts for each token, each expert takes the C highest tokens of its column inside a group, the combine weight is that
probability, not renormalised. Shapes are static, so nothing synchronises with the host.

Shapes: T = G * S flat tokens, G groups, S tokens of a group, D width, E experts, C slots of an expert over all groups.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from imp_ds.errors import UserError


@dataclass(frozen=True)
class RoutingContext:
    """What a router may know of a call beside the tokens.

    group_tokens: S, tokens that compete with each other; T is a multiple of it and groups are contiguous.
    valid_T: bool [T], False where a token is padding; None when nothing is.
    """

    group_tokens: int
    valid_T: torch.Tensor | None = None


class RouterReport(NamedTuple):
    """What one MoE layer tells of one call. z_loss carries gradient, the rest does not.

    z_loss: mean over groups of the group's mean (logsumexp of the logits)^2, padding left out.
    usage_E: share of the whole combine weight that each expert gave; sums to 1.
    left_behind: share of the tokens (padding left out) that no expert took.
    confidence: mean combine weight of the slots that hold a token.
    """

    z_loss: torch.Tensor
    usage_E: torch.Tensor
    left_behind: torch.Tensor
    confidence: torch.Tensor


class Routing(NamedTuple):
    """A decision. token_index_EC: flat token of each slot; weight_EC: its combine weight, float32, 0 for an empty slot.

    A tuple, because ZeRO 3 finds the tensors of a module's output in tuples, and gathers its weights for the backward so.
    """

    token_index_EC: torch.Tensor
    weight_EC: torch.Tensor
    report: RouterReport


def capacity(group_tokens: int, num_experts: int, capacity_factor: float) -> int:
    """Slots of one expert in one group: round(factor * S / E), at least 1 and at most S (IMP release, `routing.py`)."""
    return max(1, min(group_tokens, int(capacity_factor * group_tokens / num_experts + 0.5)))


def router_z_loss(logits_GSE: torch.Tensor, valid_GS: torch.Tensor | None) -> torch.Tensor:
    """ST-MoE's z-loss (Zoph et al., 2022, arXiv 2202.08906). A mean of group means depends on no neighbour, so it is the
    same however the groups are spread over ranks."""
    squares_GS = logits_GSE.logsumexp(-1).square()
    if valid_GS is None:
        return squares_GS.mean()
    valid_GS = valid_GS.to(squares_GS.dtype)
    return ((squares_GS * valid_GS).sum(1) / valid_GS.sum(1).clamp(min=1)).mean()


class ExpertChoiceRouter(nn.Module):
    """Each expert takes its best tokens. Everything here is float32, whatever the model's type. Not causal."""

    def __init__(self, width: int, num_experts: int, capacity_factor: float):
        super().__init__()
        self.num_experts, self.capacity_factor = num_experts, capacity_factor
        self.weight = nn.Parameter(torch.empty(num_experts, width))

    def forward(self, x_TD: torch.Tensor, context: RoutingContext) -> Routing:
        with torch.autocast(x_TD.device.type, enabled=False):
            logits_TE = F.linear(x_TD.float(), self.weight.float())
        size, experts = context.group_tokens, self.num_experts
        logits_GSE = logits_TE.view(-1, size, experts)
        valid_GS = None if context.valid_T is None else context.valid_T.view(-1, size)
        scores_GES = logits_GSE.softmax(-1).transpose(1, 2)
        slots = capacity(size, experts, self.capacity_factor)
        if valid_GS is None:
            weight_GEC, place_GEC = scores_GES.topk(slots, dim=-1, sorted=False)
        else:
            # padding sorts below every token, and a slot that has to hold it all the same counts for nothing
            weight_GEC, place_GEC = scores_GES.masked_fill(~valid_GS[:, None], -1.0).topk(slots, dim=-1, sorted=False)
            weight_GEC = weight_GEC.clamp(min=0.0)
        start_G = torch.arange(logits_GSE.shape[0], device=x_TD.device) * size
        index_EC = (place_GEC + start_G[:, None, None]).transpose(0, 1).reshape(experts, -1)
        weight_EC = weight_GEC.transpose(0, 1).reshape(experts, -1)
        report = self._report(logits_GSE, valid_GS, index_EC, weight_EC)
        return Routing(index_EC, weight_EC, report)

    @staticmethod
    def _report(logits_GSE, valid_GS, index_EC, weight_EC) -> RouterReport:
        z_loss = router_z_loss(logits_GSE, valid_GS)
        with torch.no_grad():
            tokens = logits_GSE.shape[0] * logits_GSE.shape[1]
            filled_EC = weight_EC > 0
            taken_T = weight_EC.new_zeros(tokens).index_add_(0, index_EC.reshape(-1), filled_EC.reshape(-1).float()) > 0
            total = tokens if valid_GS is None else valid_GS.sum()
            weight_E = weight_EC.sum(1)
            return RouterReport(
                z_loss=z_loss,
                usage_E=weight_E / weight_E.sum().clamp(min=1e-9),
                left_behind=1.0 - taken_T.sum() / total,
                confidence=weight_E.sum() / filled_EC.sum().clamp(min=1),
            )


# name -> class; adding a router is a class and its line
ROUTERS = {"expert_choice": ExpertChoiceRouter}


def build_router(name: str, width: int, num_experts: int, capacity_factor: float) -> nn.Module:
    """The router of that name. Raises UserError for an unknown one."""
    if name not in ROUTERS:
        raise UserError("unknown router", got=name, allowed=", ".join(ROUTERS))
    return ROUTERS[name](width, num_experts, capacity_factor)
