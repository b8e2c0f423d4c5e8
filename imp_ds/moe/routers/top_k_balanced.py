"""Top-k whose load is balanced by a bias of each expert instead of a loss (Wang et al., 2024, arXiv 2408.15664; DeepSeek-V3,
arXiv 2412.19437, section 2.1.2).

A token's scores are sigmoids of its logits. It takes the k experts with the highest score + bias; the weights are the scores
without the bias, renormalised to 1 for k > 1, or as `renormalise` says. After each step the bias of an expert rises by
`bias_rate` if fewer tokens chose it than the mean expert, and falls by as much if more did: over all tokens of the step, of all
micro-batches and ranks, before any are dropped. Nothing about it is differentiated, and outside of training it stays as it is.

The state is how often each bias was raised more than lowered, an integer: exact whatever the model's type is, and the same on
any number of ranks.

Shapes: G groups, S tokens of a group, E experts, K experts of a token.
"""

import torch
from pydantic import Field

from imp_ds.moe.routers.registry import register
from imp_ds.moe.routers.top_k import TopKOptions, TopKRouter


class BalancedTopKOptions(TopKOptions):
    """Those of top-k, and the rate of the bias."""

    bias_rate: float = Field(0.001, ge=0, description="by how much an expert's bias changes in a step")


@register
class BalancedTopKRouter(TopKRouter):
    """Each token takes the experts of the highest score + bias; the bias evens out how many tokens the experts get.

    raises_E: bias / bias_rate, int64, kept with the weights; chosen_E: tokens of the step so far that chose each expert, int64.
    """

    kind = "top_k_balanced"
    Options = BalancedTopKOptions
    serves_conditions = False

    def __init__(self, width: int, num_experts: int, options: BalancedTopKOptions | None = None, **gate):
        super().__init__(width, num_experts, options, **gate)
        self.register_buffer("raises_E", torch.zeros(num_experts, dtype=torch.int64))
        self.register_buffer("chosen_E", torch.zeros(num_experts, dtype=torch.int64), persistent=False)

    @property
    def takes_all(self) -> bool:
        return False  # it does, with k = E, but by other weights than those of a softmax

    @property
    def bias_E(self) -> torch.Tensor:
        """What is added to the scores, float32."""
        return self.raises_E.float() * self.options.bias_rate

    def best(self, logits_GSE: torch.Tensor, valid_GS: torch.Tensor | None) -> tuple:
        score_GSE = logits_GSE.sigmoid()
        expert_GSK = (score_GSE.detach() + self.bias_E).topk(self.options.experts_per_token, dim=-1).indices
        weight_GSK = score_GSE.gather(-1, expert_GSK)
        chosen, renormalise = self.options.experts_per_token, self.options.renormalise
        if chosen > 1 if renormalise is None else renormalise:
            weight_GSK = weight_GSK / weight_GSK.sum(-1, keepdim=True).clamp(min=1e-20)
        # where a batch is encoded without a gradient first, it is counted when it is encoded again
        if self.training and torch.is_grad_enabled():
            self._count(expert_GSK, valid_GS)
        return weight_GSK, expert_GSK, weight_GSK.new_zeros(())

    @torch.no_grad()
    def _count(self, expert_GSK: torch.Tensor, valid_GS: torch.Tensor | None) -> None:
        # activation checkpointing computes and counts all tokens of a layer twice, which moves no bias the other way
        one_GSK = torch.ones_like(expert_GSK) if valid_GS is None else valid_GS[..., None].expand_as(expert_GSK).long()
        self.chosen_E.index_add_(0, expert_GSK.flatten(), one_GSK.flatten())

    def counts(self) -> torch.Tensor:
        return self.chosen_E

    def after_step(self, counts: torch.Tensor) -> None:
        # below the mean: sum / E - count > 0, in integers
        self.raises_E += (counts.sum() - counts * self.num_experts).sign()
