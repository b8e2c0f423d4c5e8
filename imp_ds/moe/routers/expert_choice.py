"""Expert choice (Zhou et al., 2022, arXiv 2202.09368) as the IMP release has it (`modeling/routing.py`).

Softmax over the experts for each token; each expert takes the C highest tokens of its column inside a group; the combine
weight is that probability, not renormalised. Shapes are static, so nothing synchronises with the host. Not causal.

Shapes: G groups, S tokens of a group, E experts, N = E * G * C rows.
"""

import torch
from pydantic import Field

from imp_ds.moe.routers.registry import register
from imp_ds.moe.routers.router import Router
from imp_ds.moe.routing import Counted, capacity, expert_slots, take_best
from imp_ds.records import Record


class ExpertChoiceOptions(Record):
    """capacity_factor: the mean number of experts of a token."""

    capacity_factor: float = Field(1.0, gt=0, description="mean experts of a token")


@register
class ExpertChoiceRouter(Router):
    """Each expert takes its best tokens: every expert has equally many, a token has none, one or several."""

    kind = "expert_choice"
    Options = ExpertChoiceOptions
    is_causal = False
    has_even_rows = True

    @property
    def takes_all(self) -> bool:
        return self.options.capacity_factor >= self.num_experts

    def rows(self, groups: int, group_tokens: int) -> int:
        return groups * self.num_experts * capacity(group_tokens, self.num_experts, self.options.capacity_factor)

    def choose(self, logits_GSE: torch.Tensor, valid_GS: torch.Tensor | None, counted: Counted | None = None) -> tuple:
        score_GES = logits_GSE.softmax(-1).transpose(1, 2)
        if valid_GS is not None:
            score_GES = score_GES.masked_fill(~valid_GS[:, None], -1.0)
        _, experts, size = score_GES.shape
        index_N, weight_N = take_best(score_GES, *expert_slots(size, experts, self.options.capacity_factor, counted))
        return index_N, weight_N, None, weight_N.new_zeros(())
