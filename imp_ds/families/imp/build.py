"""The module of a run of IMP, fresh."""

import torch

from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.models.imp.configuration_imp import ImpConfig
from imp_ds.models.imp.initialization import initialize_seeded
from imp_ds.parallel.groups import rank


def build_model(config: ImpConfig, seed: int, ep_size: int) -> ImpForPreTraining:
    """The module to train, this rank's experts only, with weights that depend on (seed, name, expert) alone."""
    with torch.device("meta"):
        model = ImpForPreTraining(config)
    if ep_size > 1:
        from imp_ds.parallel.expert_parallel import spread_experts  # with DeepSpeed, which takes seconds and plans do without

        spread_experts(model, ep_size, rank())
    model.to_empty(device="cpu")
    initialize_seeded(model, seed, config.initializer_range)
    return model
