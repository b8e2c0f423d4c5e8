"""Token choice: each token takes its k most probable experts.

With k = 1 the combine weight is the probability (Switch Transformer, Fedus et al., 2021, arXiv 2101.03961), with k > 1 the
probabilities of the chosen ones, renormalised to 1 before anything is dropped (GShard, Lepikhin et al., 2020,
arXiv 2006.16668; Uni-Perceiver-MoE, `gate.py`). `renormalise` says otherwise: some language models leave the probabilities of
several choices as they are (Qwen3-MoE's `norm_topk_prob`), others make a single choice weigh 1 (Mixtral).

With capacity, an expert keeps the C = round(factor * k * S / E) of its tokens of a group that weigh most, so that what is
dropped depends neither on the order of the tokens nor on other groups; shapes are as static as those of expert choice. With
k = 1 these are the tokens that V-MoE's batch prioritised routing keeps (Riquelme et al., 2021, arXiv 2106.05974, section 4). With
k > 1 they need not be: there all first choices are served before any second one, and tokens are ranked by their largest weight;
here a choice competes with its own weight, whether it is a first or a second one. Drop-free, every choice is a row, and experts
have as many as they get.

While a model is exported, drop-free too has rows of a number that is known: each expert has all tokens, with a weight of 0 where
they have not chosen it.

Shapes: G groups, S tokens of a group, T = G * S flat tokens, E experts, K experts of a token, N rows.
"""

import torch
from pydantic import Field

from imp_ds.errors import UserError
from imp_ds.moe.routers.registry import register
from imp_ds.moe.routers.router import Router
from imp_ds.moe.routing import Counted, balance_loss, capacity, expert_slots, take_best
from imp_ds.records import Record


def best_experts(
    logits: torch.Tensor, experts_per_token: int, renormalise: bool | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """From logits [..., E]: the probabilities [..., E], and the weights and the indices of the most probable, [..., K]."""
    probability = logits.softmax(-1)
    weight, expert = probability.topk(experts_per_token, dim=-1)
    if experts_per_token > 1 if renormalise is None else renormalise:
        # the same as dividing by their sum, but those left out get gradients of exactly 0: Adam would make steps of rounding
        weight = logits.gather(-1, expert).softmax(-1)
    return probability, weight, expert


class TopKOptions(Record):
    """How many experts a token chooses, and whether they have a capacity."""

    experts_per_token: int = Field(2, ge=1, description="choices of a token")
    drop_tokens: bool = Field(True, description="whether an expert keeps at most its capacity")
    capacity_factor: float = Field(1.0, gt=0, description="slots of all experts together, as a multiple of the choices")
    renormalise: bool | None = Field(None, description="whether a token's weights sum to 1; None: those of several choices do")


@register
class TopKRouter(Router):
    """Each token takes its `experts_per_token` best experts; with `drop_tokens` an expert has a capacity."""

    kind = "top_k"
    Options = TopKOptions
    serves_conditions = True

    def check(self) -> None:
        if self.options.experts_per_token > self.num_experts:
            raise UserError(
                "a token cannot choose that many experts", got=f"experts_per_token = {self.options.experts_per_token}",
                allowed=f"1 to num_experts = {self.num_experts}",
            )  # fmt: skip

    @property
    def is_causal(self) -> bool:
        return not self.options.drop_tokens

    @property
    def has_even_rows(self) -> bool:
        return self.options.drop_tokens

    @property
    def takes_all(self) -> bool:
        return self.options.experts_per_token == self.num_experts

    def describe(self) -> str:
        return f"router = {self.kind}{', drop_tokens = true' if self.options.drop_tokens else ''}"

    def rows(self, groups: int, group_tokens: int) -> int:
        if not self.options.drop_tokens:
            return groups * group_tokens * self.options.experts_per_token
        return groups * self.num_experts * capacity(group_tokens, self.num_experts, self._factor)

    @property
    def _factor(self) -> float:
        return self.options.capacity_factor * self.options.experts_per_token

    def best(self, logits_GSE: torch.Tensor, valid_GS: torch.Tensor | None) -> tuple:
        """Weights and experts of each token's choices, [G, S, K], and the balance loss, a scalar."""
        chosen = self.options.experts_per_token
        probability_GSE, weight_GSK, expert_GSK = best_experts(logits_GSE, chosen, self.options.renormalise)
        share_GSE = torch.zeros_like(probability_GSE).scatter(-1, expert_GSK, 1.0 / chosen)
        return weight_GSK, expert_GSK, balance_loss(probability_GSE, share_GSE, valid_GS)

    def choose(self, logits_GSE: torch.Tensor, valid_GS: torch.Tensor | None, counted: Counted | None = None) -> tuple:
        weight_GSK, expert_GSK, balance = self.best(logits_GSE, valid_GS)
        if self.options.drop_tokens:
            slots = expert_slots(logits_GSE.shape[1], self.num_experts, self._factor, counted)
            kept = self._keep_best(weight_GSK, expert_GSK, valid_GS, *slots)
        elif torch.compiler.is_exporting():
            kept = self._keep_best(weight_GSK, expert_GSK, valid_GS, logits_GSE.shape[1])
        else:
            kept = self._keep_all(weight_GSK, expert_GSK, valid_GS)
        return *kept, balance

    def _keep_best(self, weight_GSK, expert_GSK, valid_GS, slots: int, filled_G=None) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Rows of equal capacity: a column of the tokens' choices is ranked as under expert choice."""
        experts = self.num_experts
        # below 0 where a token has not chosen the expert; a chosen weight may be 0 in float32, and is as good as none
        score_GSE = weight_GSK.new_full((*weight_GSK.shape[:2], experts), -1.0).scatter(-1, expert_GSK, weight_GSK)
        if valid_GS is not None:
            score_GSE = score_GSE.masked_fill(~valid_GS[..., None], -1.0)
        return *take_best(score_GSE.transpose(1, 2), slots, filled_G), None

    def _keep_all(self, weight_GSK, expert_GSK, valid_GS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One row for each choice of each valid token, sorted by expert; tokens keep their order within one."""
        weight_R, expert_R = weight_GSK.flatten(), expert_GSK.flatten()
        token_R = torch.arange(len(weight_R), device=weight_R.device) // self.options.experts_per_token
        if valid_GS is not None:
            # how many there are is known to the device alone: with padding, drop-free routing waits for it
            valid_R = valid_GS.flatten()[token_R]
            weight_R, expert_R, token_R = weight_R[valid_R], expert_R[valid_R], token_R[valid_R]
        expert_N, order_N = expert_R.sort(stable=True)
        edge_E = torch.searchsorted(expert_N, torch.arange(self.num_experts + 1, device=expert_N.device))
        return token_R[order_N], weight_R[order_N], edge_E.diff()
