"""A family's module to train, made without weights and then filled."""

import torch
from torch import nn

from imp_ds.families.train_module import TrainModule
from imp_ds.models.initialization import initialize_module, initialize_seeded
from imp_ds.parallel.groups import rank

STD = 0.02  # of routers, where a configuration has no initializer_range


def meta_module(kind: type[TrainModule], config) -> TrainModule:
    """The module with all experts, on the meta device, where nothing is allocated."""
    with torch.device("meta"):
        return kind(config)


def build_module(kind: type[TrainModule], config, seed: int, ep_size: int) -> TrainModule:
    """A fresh module on the CPU with this rank's experts only: weights depend on (seed, name, expert) alone. Raises UserError for
    a module in it that no rule initialises."""
    model = spread_module(kind, config, ep_size)
    _to_cpu(model)
    initialize_seeded(model, seed, _std(config))
    return model


def spread_module(kind: type[TrainModule], config, ep_size: int) -> TrainModule:
    """The module with this rank's experts only, on the meta device."""
    model = meta_module(kind, config)
    if ep_size > 1:
        from imp_ds.parallel.expert_parallel import spread_experts  # with DeepSpeed, which takes seconds and plans do without

        spread_experts(model, ep_size, rank())
    return model


def empty_module(kind: type[TrainModule], config) -> TrainModule:
    """The module with all experts on the CPU, to be filled from a checkpoint; what no checkpoint has is filled."""
    model = meta_module(kind, config)
    _to_cpu(model)
    held = [module for module in model.modules() if module._non_persistent_buffers_set]
    before = _unsaved_versions(held)
    for module in held:
        initialize_module(module, _std(config))
    if any(new == old for new, old in zip(_unsaved_versions(held), before)):  # the rule is that of a module around it
        initialize_seeded(model, 0, _std(config))
    return model


def _to_cpu(model: nn.Module) -> None:
    """Give the model uninitialised memory; a parameter that modules share stays one."""
    places: dict[int, list] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            places.setdefault(id(parameter), []).append((module, name))
    model.to_empty(device="cpu")
    for (first, name), *others in (shared for shared in places.values() if len(shared) > 1):
        for module, other in others:
            module._parameters[other] = first._parameters[name]


def _unsaved_versions(modules: list[nn.Module]) -> list[int]:
    """Of each buffer that no checkpoint has how often it has been written to."""
    return [getattr(module, name)._version for module in modules for name in sorted(module._non_persistent_buffers_set)]


def _std(config) -> float:
    return getattr(config, "initializer_range", STD)
