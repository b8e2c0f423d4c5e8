"""Routers by name."""

from imp_ds.errors import UserError
from imp_ds.moe.expert_choice import ExpertChoiceRouter
from imp_ds.moe.routing import Router
from imp_ds.moe.top_k import TopKRouter

# name -> class; adding a router is a class and its line
ROUTERS = {"expert_choice": ExpertChoiceRouter, "top_k": TopKRouter}


def build_router(name: str, width: int, num_experts: int, capacity_factor: float, noise: float = 0.0, **options) -> Router:
    """The router of that name; `options` are those of its class. Raises UserError for an unknown name."""
    if name not in ROUTERS:
        raise UserError("unknown router", got=name, allowed=", ".join(ROUTERS))
    return ROUTERS[name](width, num_experts, capacity_factor, noise, **options)
