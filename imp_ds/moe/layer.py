"""The mixture-of-experts layer: route, and let the dispatcher bring tokens to experts and back.

Shapes: B batch, L tokens of an example, T = B * L flat tokens, D width.
"""

import torch
from torch import nn

from imp_ds.errors import UserError
from imp_ds.moe.dispatch import LocalDispatcher
from imp_ds.moe.experts import Experts
from imp_ds.moe.routers import build_router
from imp_ds.moe.routing import RouterReport, RoutingContext


def examples_per_group(batch: int, length: int, group_tokens: int, group_examples: int | None) -> int:
    """Examples that compete for experts together: the largest divisor of `batch` within both limits.

    Groups hold whole examples, so results do not depend on how a batch is spread over ranks, as long as each rank's
    share is a multiple of the group. Raises UserError when one example is already longer than a group.
    """
    if length > group_tokens:
        raise UserError(
            "an example is longer than a routing group", got=f"{length} tokens", allowed=f"group_tokens = {group_tokens} at most",
            fix="raise group_tokens in the model configuration, or use fewer frames, a smaller size or a higher drop rate",
        )  # fmt: skip
    most = min(group_tokens // length, group_examples or batch, batch)
    return next(n for n in range(most, 0, -1) if batch % n == 0)


class MoELayer(nn.Module):
    """A feed-forward of `num_experts` experts. forward: x [B, L, D] -> ([B, L, D], RouterReport).

    `router` names one of `imp_ds.moe.routers`, and `router_options` are those of its class.
    """

    def __init__(
        self,
        width: int,
        feed_forward: int,
        num_experts: int,
        *,
        router: str = "expert_choice",
        activation: str = "gelu",
        capacity_factor: float = 1.0,
        noise: float = 0.0,
        group_tokens: int = 2048,
        group_examples: int | None = None,
        **router_options,
    ):
        super().__init__()
        self.group_tokens, self.group_examples = group_tokens, group_examples
        self.router = build_router(router, width, num_experts, capacity_factor, noise, **router_options)
        self.experts = Experts(width, feed_forward, num_experts, activation)
        self.dispatcher = LocalDispatcher()

    def forward(
        self, x_BLD: torch.Tensor, valid_BL: torch.Tensor | None = None, key_B: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, RouterReport]:
        """valid_BL: False at padding, which no expert takes; key_B: the samples' random keys, int64, for the router's noise."""
        batch, length, width = x_BLD.shape
        size = examples_per_group(batch, length, self.group_tokens, self.group_examples) * length
        x_TD = x_BLD.reshape(-1, width)
        routing = self.router(x_TD, RoutingContext(size, None if valid_BL is None else valid_BL.reshape(-1), key_B))
        return self.dispatcher(x_TD, routing, self.experts).view_as(x_BLD), routing.report
