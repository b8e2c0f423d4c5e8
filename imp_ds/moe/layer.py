"""The mixture-of-experts layer: route, and let the dispatcher bring tokens to experts and back.

Shapes: B batch, L tokens of an example, T = B * L flat tokens, D width.
"""

import torch
from torch import nn

from imp_ds.moe.dispatch import LocalDispatcher
from imp_ds.moe.experts import Experts
from imp_ds.moe.grouping import Grouping
from imp_ds.moe.routers.registry import build_router
from imp_ds.moe.routing import Counted


class MoELayer(nn.Module):
    """A feed-forward of `num_experts` experts. forward: x [B, L, D] -> ([B, L, D], RouterReport).

    `router` names one of `imp_ds.moe.routers.registry`, and `router_options` are those of its class.
    """

    def __init__(
        self,
        width: int,
        feed_forward: int,
        num_experts: int,
        *,
        router: str = "expert_choice",
        activation: str = "gelu",
        noise: float = 0.0,
        sees_context: bool = False,
        group_tokens: int = 2048,
        group_examples: int | None = None,
        **router_options,
    ):
        super().__init__()
        self.grouping = Grouping(group_tokens, group_examples)
        self.router = build_router(router, width, num_experts, router_options, noise=noise, sees_context=sees_context)
        self.experts = Experts(width, feed_forward, num_experts, activation)
        self.dispatcher = LocalDispatcher()

    def forward(
        self,
        x_BLD: torch.Tensor,
        valid_BL: torch.Tensor | None = None,
        key_B: torch.Tensor | None = None,
        mask_LL: torch.Tensor | None = None,
        counted: Counted | None = None,
        gate_BLD: torch.Tensor | None = None,
        with_logits: bool = False,
        key_T: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """valid_BL: False at padding, which no expert takes; key_B: the samples' random keys, int64, for the router's noise;
        mask_LL: True where the row's token sees the column's, for a router that sees the context; counted: each example routes
        alone, and counts as so many tokens; None: examples share groups; gate_BLD: what the router sees in the place of x;
        None: x. with_logits: whether the router's logits come third, [T, E], float32, with gradient. key_T: the tokens' random
        keys, int64, for experts with dropout."""
        seen_TD = (x_BLD if gate_BLD is None else gate_BLD).reshape(-1, x_BLD.shape[2])
        routing = self.router(seen_TD, self.grouping.context(x_BLD, valid_BL, key_B, mask_LL, counted))._replace(key_T=key_T)
        x_TD = routing.x_TD if gate_BLD is None else x_BLD.reshape(seen_TD.shape)
        y_BLD = self.dispatcher(x_TD, routing, self.experts).view_as(x_BLD)
        return (y_BLD, routing.report, routing.logits_TE) if with_logits else (y_BLD, routing.report)
