"""The contract of a router: how experts are chosen. Each router is one class in a file of its own, which gives

    kind, Options         its name, and what can be set of it, as a record
    choose                the decision, from the logits of groups of tokens
    rows                  how many rows its experts compute, for planning
    is_causal             whether a token's answer can depend on other tokens
    counts, after_step    what it counts in a step, and what it changes by that: a state of its own is a persistent buffer

What the decision is made from is the gate: the token, or its context too, for the routers here. Gates that are the same for a
whole segment are in `imp_ds.moe.soft_merging`.

Shapes: B samples, L tokens of a sample, T = B * L = G * S flat tokens, G groups, S tokens of a group, D width, E experts,
N rows, an expert and a token each.
"""

from abc import ABC, abstractmethod
from contextlib import nullcontext
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from imp_ds.moe.kernels.compute import router_logits
from imp_ds.moe.routers.context import ContextPool
from imp_ds.moe.routing import Counted, RouterReport, Routing, RoutingContext, router_z_loss
from imp_ds.randomness import normal
from imp_ds.records import Record


class Router(nn.Module, ABC):
    """A linear layer to one logit for each expert, and a decision on them by `choose`, which subclasses have.

    Args:
        options: a record of `Options`; None: its defaults.
        noise: standard deviation of the Gaussian noise on the logits in units of 1 / E (V-MoE, Riquelme et al., 2021,
            arXiv 2106.05974, section 2.1); drawn where samples have random keys.
        sees_context: the gate is the token and the pooled tokens of its sequence: the linear layer is [E, 2 D], not [E, D] (the
            context gate of Uni-Perceiver-MoE, arXiv 2206.04674).

    Raises UserError for options that do not go with the number of experts.
    """

    kind: ClassVar[str]
    Options: ClassVar[type[Record]] = Record
    serves_conditions: ClassVar[bool] = False  # whether a gate that is the same for a whole segment may choose so

    def __init__(
        self, width: int, num_experts: int, options: Record | None = None, *, noise: float = 0.0, sees_context: bool = False
    ):
        super().__init__()
        self.num_experts, self.noise = num_experts, noise
        self.options = self.Options() if options is None else options
        self.weight = nn.Parameter(torch.empty(num_experts, 2 * width if sees_context else width))
        self.pool = ContextPool(width) if sees_context else None
        self.check()

    @abstractmethod
    def choose(self, logits_GSE: torch.Tensor, valid_GS: torch.Tensor | None, counted: Counted | None = None) -> tuple:
        """(token_index_N, weight_N, count_E) as in Routing, and the balance loss, a scalar."""

    @abstractmethod
    def rows(self, groups: int, group_tokens: int) -> int:
        """N of `choose` in training, for so many groups of so many tokens, none of which is padding."""

    @property
    @abstractmethod
    def is_causal(self) -> bool:
        """Whether a token's experts and weights depend on that token alone, so that no other one, earlier or later, changes
        its answer. Only such a router serves where tokens must not see what follows."""

    @property
    def drops_tokens(self) -> bool:
        """Whether a token may have no expert at all."""
        return not self.is_causal

    @property
    def has_even_rows(self) -> bool:
        """Whether all experts always have equally many rows, so that `choose` gives no count_E."""
        return False

    @property
    def takes_all(self) -> bool:
        """Whether every expert takes every token, and a token's weights are those of a softmax."""
        return False

    def check(self) -> None:
        """Raise UserError for options that do not go with the number of experts."""

    def describe(self) -> str:
        """The choice in the words of the settings, for messages."""
        return f"router = {self.kind}"

    def counts(self) -> torch.Tensor | None:
        """What was counted in the step so far, int64, which is summed over all ranks and then set to zero; None: nothing is."""
        return None

    def after_step(self, counts: torch.Tensor) -> None:
        """Called after each optimizer step that was taken, on all ranks, with the sum of `counts` over them."""

    def forward(self, x_TD: torch.Tensor, context: RoutingContext) -> Routing:
        # on the meta device, where costs are counted, there is no autocast, and no token is padding
        with nullcontext() if x_TD.is_meta else torch.autocast(x_TD.device.type, enabled=False):
            logits_TE, x_TD = self._logits(x_TD, context)
        if self.noise and context.key_B is not None:
            noise_BLE = normal(context.key_B, len(x_TD) // len(context.key_B), self.num_experts)
            logits_TE = logits_TE + noise_BLE.flatten(0, 1) * (self.noise / self.num_experts)
        padded = context.valid_T is not None and not x_TD.is_meta
        valid_GS = context.valid_T.view(-1, context.group_tokens) if padded else None
        logits_GSE = logits_TE.view(-1, context.group_tokens, self.num_experts)
        index_N, weight_N, count_E, balance = self.choose(logits_GSE, valid_GS, context.counted)
        z_loss = router_z_loss(logits_GSE, valid_GS)
        with torch.no_grad():
            tokens = x_TD.shape[0] if valid_GS is None else valid_GS.sum().clamp(min=1)
            report = RouterReport(
                z_loss=z_loss,
                balance_loss=balance,
                usage_E=_usage(weight_N, count_E, self.num_experts),
                dropped_fraction=1.0 - _tokens_taken(index_N, weight_N, x_TD.shape[0]) / tokens,
                mean_combine_weight=weight_N.sum() / (weight_N > 0).sum().clamp(min=1),
            )
        return Routing(index_N, weight_N, count_E, report, logits_TE, x_TD)

    def _logits(self, x_TD: torch.Tensor, context: RoutingContext) -> tuple[torch.Tensor, torch.Tensor]:
        if self.pool is None:
            return router_logits(x_TD, self.weight)
        width, length = x_TD.shape[1], context.length
        valid_BL = None if context.valid_T is None else context.valid_T.view(-1, length)
        pooled = self.pool(x_TD.float().view(-1, length, width), valid_BL, context.mask_LL)
        # the product of both side by side, without laying them side by side
        of_token_TE, x_TD = router_logits(x_TD, self.weight[:, :width])
        of_token_BLE = of_token_TE.view(-1, length, self.num_experts)
        return (of_token_BLE + F.linear(pooled, self.weight[:, width:].float())).flatten(0, 1), x_TD


def _usage(weight_N: torch.Tensor, count_E: torch.Tensor | None, num_experts: int) -> torch.Tensor:
    if count_E is None:
        weight_E = weight_N.view(num_experts, -1).sum(1)
    else:
        expert_N = torch.repeat_interleave(torch.arange(num_experts, device=count_E.device), count_E, output_size=len(weight_N))
        weight_E = weight_N.new_zeros(num_experts).index_add_(0, expert_N, weight_N)
    return weight_E / weight_E.sum().clamp(min=1e-9)


def _tokens_taken(token_index_N: torch.Tensor, weight_N: torch.Tensor, tokens: int) -> torch.Tensor:
    return (weight_N.new_zeros(tokens).index_add_(0, token_index_N, (weight_N > 0).float()) > 0).sum()
