"""Experts spread over ranks, as layers that the DeepSpeed engine recognises.

DeepSpeed 0.19.8 knows a mixture of experts by its class: gradient reduction of experts, ZeRO partitions and the split of
the optimizer's groups hang on `isinstance(module, AutoEPMoELayer)` and on a few tags on the parameters. This file is the
only place that knows them. Everything else (router, experts, groups) is `imp_ds.moe`, unchanged.

Ranks 0 .. ep_size-1 form the first expert group, and so on; each holds num_experts / ep_size consecutive experts, and
groups are replicas of each other. Expert choice fixes the number of rows of every expert, so both exchanges are
all-to-alls of equal, known splits.

Shapes: T flat tokens, D width, E experts of the layer, C slots of an expert on one rank, R ranks of an expert group,
E/R experts held by a rank.
"""

import torch
import torch.distributed as dist
from deepspeed.checkpoint.autoep_affine import (
    autoep_experts_for_rank,
    autoep_placement_to_affine_map,
    legacy_uniform_autoep_placement_descriptor,
)
from deepspeed.checkpoint.constants import (
    AFFINE_MAP,
    AUTOEP_EXPERT_PLACEMENT,
    AUTOEP_PARAM_EP_RANK,
    AUTOEP_PARAM_LOCAL_EXPERTS,
    AUTOEP_PARAM_LOGICAL_SHAPE,
    DS_AUTOEP_UC_META,
)
from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer
from torch import nn

from imp_ds.moe.dispatch import LocalDispatcher
from imp_ds.moe.layer import MoELayer
from imp_ds.moe.routing import Routing


class _AllToAll(torch.autograd.Function):
    """Equal-split all-to-all over the leading dimension; it is its own transpose."""

    @staticmethod
    def forward(ctx, group, x: torch.Tensor) -> torch.Tensor:
        ctx.group = group
        received = torch.empty_like(x)
        dist.all_to_all_single(received, x.contiguous(), group=group)
        return received

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        sent = torch.empty_like(grad)
        dist.all_to_all_single(sent, grad.contiguous(), group=ctx.group)
        return None, sent


class AllToAllDispatcher(LocalDispatcher):
    """Local dispatch, then rows go to the ranks that hold their experts; answers come back the same way.

    Every rank of the group must call with the same number of slots: the same task, and equally many groups.
    """

    def __init__(self, ep_size: int):
        self.ep_size = ep_size
        self.group = None  # set by DeepSpeed through set_deepspeed_parallelism, once groups exist

    def dispatch(self, x_TD: torch.Tensor, routing: Routing) -> torch.Tensor:
        """Rows of this rank's experts from all ranks of the group, [E/R, R * C, D]."""
        x_ECD = super().dispatch(x_TD, routing)
        experts, slots, width = x_ECD.shape
        received = _AllToAll.apply(self.group, x_ECD).view(self.ep_size, experts // self.ep_size, slots, width)
        return received.transpose(0, 1).reshape(experts // self.ep_size, self.ep_size * slots, width)

    def combine(self, y_ECD: torch.Tensor, routing: Routing, num_tokens: int) -> torch.Tensor:
        experts, slots = routing.token_index_EC.shape
        by_rank = y_ECD.view(experts // self.ep_size, self.ep_size, slots, -1).transpose(0, 1)
        answers = _AllToAll.apply(self.group, by_rank.reshape(experts, slots, -1))
        return super().combine(answers, routing, num_tokens)


class ExpertParallelMoE(MoELayer, AutoEPMoELayer):
    """A MoELayer whose experts are spread over `ep_size` ranks; this one is the `ep_rank`-th of its group.

    It is an AutoEPMoELayer for the engine's sake alone: that class's constructor (which converts a foreign layer) is not
    run, its attributes are set here, and MoELayer.forward computes.
    """

    def __init__(self, layer: MoELayer, ep_size: int, ep_rank: int):
        nn.Module.__init__(self)
        self.group_tokens, self.group_examples = layer.group_tokens, layer.group_examples
        self.router = layer.router
        self.num_experts = layer.experts.num_experts
        self.num_local_experts = self.num_experts // ep_size
        self.experts = layer.experts.slice(ep_rank * self.num_local_experts, self.num_local_experts)
        self.dispatcher = AllToAllDispatcher(ep_size)
        self.ep_size, self.ep_rank = ep_size, ep_rank
        self.ep_group_name, self.ep_group = f"ep_size_{ep_size}", None
        self.folding_group_handles = self.tp_group = None
        self.combine_impl, self.comm_backend, self.expert_bias = "weighted_sum", "comm", None
        self.expert_placement_descriptor = legacy_uniform_autoep_placement_descriptor(
            self.num_experts, self.num_local_experts, ep_size
        )
        self._tag_experts()

    def _tag_experts(self) -> None:
        """Mark the experts' weights for gradient reduction, the optimizer's groups, ZeRO 3 and checkpoints."""
        placement = self.expert_placement_descriptor
        for parameter in self.experts.parameters():
            shape = [self.num_experts, *parameter.shape[1:]]
            parameter.allreduce = False
            parameter.group_name = self.ep_group_name
            parameter.ds_zero_placement_family = "autoep_expert"
            parameter.ds_zero_partition_group_name = self.ep_group_name
            metadata = {
                AUTOEP_EXPERT_PLACEMENT: placement,
                AFFINE_MAP: autoep_placement_to_affine_map(placement, shape).to_dict(),
                AUTOEP_PARAM_LOGICAL_SHAPE: shape,
                AUTOEP_PARAM_EP_RANK: self.ep_rank,
                AUTOEP_PARAM_LOCAL_EXPERTS: list(autoep_experts_for_rank(placement, self.ep_rank)),
            }
            setattr(parameter, DS_AUTOEP_UC_META, metadata)

    def _apply(self, fn, recurse=True):
        """Tags live on the Parameter objects, and a move to another device may make new ones."""
        super()._apply(fn, recurse)
        self._tag_experts()
        return self

    def set_deepspeed_parallelism(self, *args, **kwargs) -> None:
        """Called by the engine once it knows the ranks: creates or finds the expert group."""
        super().set_deepspeed_parallelism(*args, **kwargs)
        self.dispatcher.group = self.ep_group


def spread_experts(model: nn.Module, ep_size: int, rank: int) -> nn.Module:
    """Replace every MoELayer of `model` by its expert-parallel form, in place. The model may be on the meta device."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is MoELayer:
                setattr(parent, name, ExpertParallelMoE(child, ep_size, rank % ep_size))
    return model
