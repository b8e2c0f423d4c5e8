"""A trained model with constant gates becomes a dense one: for each condition that it will meet, its experts are merged.

Uni-Perceiver-MoE (arXiv 2206.04674; reparameterisation): for a fixed condition sum_e g_e (x W_e) = x (sum_e g_e W_e), so a
conditional linear layer is one plain one for each condition. A merged model has the dense parameters, one more copy of its
conditional linear layers for each additional condition, and no router.
"""

import torch
from torch import nn

from imp_ds.errors import UserError
from imp_ds.models.imp.conditions import build_condition, task_conditions
from imp_ds.models.imp.configuration_imp import CONSTANT_GATES, LINEAR_PAIRS, ImpConfig
from imp_ds.models.imp.encoder.layers import ImpBlock
from imp_ds.moe.conditional import MergedLinear
from imp_ds.moe.soft_merging import MergeWeights


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
    missing, _ = merged.load_state_dict(model.state_dict(), strict=False)
    assert all(".copies." in name for name in missing), missing
    known = [build_condition(config, condition, model.device).known for condition in conditions]
    with torch.no_grad():
        for block, into in zip(model.base_model.blocks, merged.base_model.blocks):
            _merge_block(block, into, known)
    return merged.eval()


def check_mergeable(config: ImpConfig) -> None:
    """Raise UserError, with the reason, unless the experts of such a model can be merged before any token is seen."""
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


def _merge_block(block: ImpBlock, into: ImpBlock, known: list[torch.Tensor]) -> None:
    """Fill the copies of a block's linear layers, in the order of the conditions, of which `known` is what their gates ask
    for."""
    for pair in LINEAR_PAIRS:
        decisions: list[MergeWeights] = []
        for linear, copies in ((block.linear(name), into.linear(name)) for name in pair):
            if not isinstance(linear, MergedLinear):
                continue
            if linear.router is not None:
                decisions = [linear.router(condition) for condition in known]
            for decision, copy in zip(decisions, copies.copies, strict=True):
                copy.weight.copy_(linear.dispatcher(decision, linear.experts).T)
