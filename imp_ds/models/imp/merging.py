"""A trained model with constant gates becomes a dense one: for each condition that it will meet, its experts are blended.

Uni-Perceiver-MoE (arXiv 2206.04674; reparameterisation): for a fixed condition sum_e g_e (x W_e) = x (sum_e g_e W_e), so a
conditional map is one plain map for each condition. A merged model has the dense parameters, one more copy of its conditional
maps for each further condition, and no router.
"""

import torch
from torch import nn

from imp_ds.errors import UserError
from imp_ds.models.imp.conditions import build_condition, task_conditions
from imp_ds.models.imp.configuration_imp import CONSTANT_GATES, MAP_PAIRS, ImpConfig
from imp_ds.models.imp.layers import ImpBlock
from imp_ds.moe.blending import Blend
from imp_ds.moe.conditional import BlendedMap

_HOLDERS = {"qkv": "attention", "out": "attention", "up": "feed_forward", "down": "feed_forward"}


def merge(model: nn.Module, tasks: list[str] | None = None) -> nn.Module:
    """A merged model of the same class (ImpModel or ImpForPreTraining), in evaluation mode; equal outputs but for rounding.

    Args:
        model: all of its experts in one process.
        tasks: of config.objectives, whose conditions it will meet; None: all.

    Raises UserError for a model that cannot be merged, with the reason, and for an unknown task.
    """
    config = model.config
    check_mergeable(config)
    conditions = merged_conditions(config, tasks)
    merged_config = ImpConfig.from_dict({**config.to_dict(), "num_experts": 0, "merged_conditions": conditions})
    merged = type(model)(merged_config).to(device=model.device, dtype=model.dtype)
    found = {name: tensor for name, tensor in model.state_dict().items() if name in merged.state_dict()}
    with torch.no_grad():
        for path, block in _blocks(model):
            found |= {f"{path}.{name}": tensor for name, tensor in _merged_maps(config, block, conditions).items()}
    merged.load_state_dict(found)
    return merged.eval()


def check_mergeable(config: ImpConfig) -> None:
    """Raise UserError, with the reason, unless the experts of such a model can be blended before any token is seen."""
    if not config.num_experts:
        raise UserError("there is nothing to merge", got="a model without experts", fix="export it without --merge")
    if not config.has_constant_gate:
        raise UserError(
            f"a {config.gate} gate cannot be merged: it chooses experts anew for every token, so no matrix serves them all",
            got=f"gate = {config.gate}", allowed=", ".join(CONSTANT_GATES), fix="export it without --merge",
        )  # fmt: skip


def merged_conditions(config: ImpConfig, tasks: list[str] | None) -> list[str]:
    """The names of all conditions that the tasks meet, each once. Raises UserError for an unknown task."""
    wanted = list(config.objectives) if tasks is None else tasks
    unknown = [task for task in wanted if task not in config.objectives]
    if unknown or not wanted:
        raise UserError("the model has no such task", got=", ".join(unknown) or "none", allowed=", ".join(config.objectives))
    return list(dict.fromkeys(name for task in wanted for name in task_conditions(config, task)))


def _blocks(model: nn.Module) -> list[tuple[str, ImpBlock]]:
    return [(path, module) for path, module in model.named_modules() if isinstance(module, ImpBlock)]


def _merged_maps(config: ImpConfig, block: ImpBlock, conditions: list[str]) -> dict[str, torch.Tensor]:
    """The weights of a block's merged maps, by their names in the merged block."""
    found = {}
    for pair in MAP_PAIRS:
        decisions: list[Blend] = []
        for name in pair:
            linear = getattr(getattr(block, _HOLDERS[name]), name)
            if not isinstance(linear, BlendedMap):
                continue
            if linear.router is not None:
                device = linear.experts.w.device
                decisions = [linear.router(build_condition(config, condition, device).known) for condition in conditions]
            for place, decision in enumerate(decisions):
                matrix_IO = linear.dispatcher(decision, linear.experts)
                found[f"{_HOLDERS[name]}.{name}.copies.{place}.weight"] = matrix_IO.T.contiguous()
    return found
