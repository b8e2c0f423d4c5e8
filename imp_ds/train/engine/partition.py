"""ZeRO 3 takes parameters one after the other, as they get their weights, and leaves a rank its share of each.

DeepSpeed 0.19.8 does that for modules that are made inside of `zero.Init`; ours are made on the meta device, and their parameters
are handed to the same code afterwards.
"""

import deepspeed
import torch
from deepspeed.utils import groups
from torch import nn

from imp_ds.families.arrival import SETTLED, give_back_memory
from imp_ds.parallel.expert_parallel import ExpertParallelLayer


def stage_of(ds: dict) -> int:
    """The ZeRO stage of an engine's configuration."""
    return ds.get("zero_optimization", {}).get("stage", 0)


def type_of(ds: dict) -> torch.dtype:
    """What the engine casts parameters to; float32 where it casts none."""
    found = [dtype for key, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)) if ds.get(key, {}).get("enabled")]
    return found[0] if found else torch.float32


class Partitioner:
    """Partitions parameters of `model` as the engine with the configuration `ds` does that it is given to later.

    All ranks call it with the same parameters in one order, each with its own experts.
    """

    def __init__(self, model: nn.Module, ds: dict):
        for layer in model.modules():
            if isinstance(layer, ExpertParallelLayer):
                layer.set_deepspeed_parallelism()  # makes the groups of ranks, which the engine then finds
        self._init = deepspeed.zero.Init(config_dict_or_path=ds)

    @torch.no_grad()
    def __call__(self, parameter: nn.Parameter) -> None:
        if (name := getattr(parameter, "ds_zero_partition_group_name", None)) is not None:
            parameter.ds_zero_partition_process_group = groups._get_expert_data_parallel_group(name)
        self._init._convert_to_zero_parameters([parameter])

    def rest(self, model: nn.Module, device: torch.device) -> None:
        """All parameters that are left, and the buffers, which the engine would leave where they are, to the device."""
        settled = 0
        for parameter in model.parameters():
            if not hasattr(parameter, "ds_id"):
                settled += parameter.nbytes
                self(parameter)
            if settled > SETTLED:
                settled = give_back_memory()
        for buffer in model.buffers():
            buffer.data = buffer.data.to(device)
