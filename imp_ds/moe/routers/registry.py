"""The routers that there are, by name: those of this package, and what an imported module registers."""

import json
from functools import lru_cache

import torch

from imp_ds.moe.routers.router import Router
from imp_ds.overrides import parse_record
from imp_ds.registry import Registry

ROUTERS = Registry("router", {
    "expert_choice": "imp_ds.moe.routers.expert_choice",
    "top_k": "imp_ds.moe.routers.top_k",
    "top_k_balanced": "imp_ds.moe.routers.top_k_balanced",
})  # fmt: skip


def register(router: type[Router]) -> type[Router]:
    """Make a router known by its `kind`. Raises UserError when it leaves open what is asked of each, and for a name that is
    taken."""
    return ROUTERS.register(router, Router)


def default_router(constant_gate: bool) -> str:
    """The router where none is named, by whether the gate is the same for a whole segment."""
    return "top_k" if constant_gate else "expert_choice"


def token_choice(experts_per_token: int, renormalise: bool) -> dict:
    """Arguments of a MoELayer where each token takes its best experts and none is dropped, as language models have it."""
    return dict(router="top_k", experts_per_token=experts_per_token, drop_tokens=False, renormalise=renormalise)


def build_router(
    name: str, width: int, num_experts: int, options: dict | None = None, *, noise: float = 0.0, sees_context: bool = False
) -> Router:
    """The router of that name. Raises UserError for an unknown name, and for options that are not its own or do not fit."""
    kind = ROUTERS[name]
    record = parse_record(kind.Options, options or {}, f"the options of the router {name}")
    return kind(width, num_experts, record, noise=noise, sees_context=sees_context)


def planned_router(name: str, num_experts: int, options: dict) -> Router:
    """A router without weights, to ask for rows, `is_causal` and the like. Errors as of `build_router`."""
    return _planned(name, ROUTERS[name], num_experts, json.dumps(options, sort_keys=True))


@lru_cache(maxsize=64)
def _planned(name: str, kind: type[Router], num_experts: int, options: str) -> Router:
    with torch.device("meta"):
        return build_router(name, 1, num_experts, json.loads(options))
