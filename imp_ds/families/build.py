"""A family's module to train, made without weights and then filled."""

import torch

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
    model = meta_module(kind, config)
    if ep_size > 1:
        from imp_ds.parallel.expert_parallel import spread_experts  # with DeepSpeed, which takes seconds and plans do without

        spread_experts(model, ep_size, rank())
    model.to_empty(device="cpu")
    initialize_seeded(model, seed, _std(config))
    return model


def empty_module(kind: type[TrainModule], config) -> TrainModule:
    """The module with all experts on the CPU, to be filled from a checkpoint; what no checkpoint has is filled."""
    model = meta_module(kind, config)
    model.to_empty(device="cpu")
    for module in model.modules():
        if module._non_persistent_buffers_set:
            initialize_module(module, _std(config))
    return model


def _std(config) -> float:
    return getattr(config, "initializer_range", STD)
