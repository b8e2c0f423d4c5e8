"""Experts spread over ranks, as layers that the DeepSpeed engine recognises.

DeepSpeed 0.19.8 knows a mixture of experts by its class: gradient reduction of experts, ZeRO partitions and the split of
the optimizer's groups hang on `isinstance(module, AutoEPMoELayer)` and on a few tags on the parameters. This file is the
only place that knows them. Everything else (router, experts, groups) is `imp_ds.moe`, unchanged.

Ranks 0 .. ep_size-1 form the first expert group, and so on; each holds num_experts / ep_size consecutive experts, and
groups are replicas of each other.

Shapes: T flat tokens, N rows in expert order, D width, E experts of the layer, R ranks of an expert group, L = E/R experts
held by a rank, C slots of an expert on one rank.
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

from imp_ds.moe.experts import Experts
from imp_ds.moe.layer import MoELayer
from imp_ds.moe.routing import Routing


class _AllToAll(torch.autograd.Function):
    """All-to-all over the leading dimension, in `sent` and `received` rows for each rank (None: equal parts); the gradient
    goes the opposite way."""

    @staticmethod
    def forward(ctx, group, x: torch.Tensor, sent: list[int] | None, received: list[int] | None) -> torch.Tensor:
        ctx.group, ctx.sent, ctx.received = group, sent, received
        return _exchange(group, x, sent, received)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        return None, _exchange(ctx.group, grad, ctx.received, ctx.sent), None, None


def _exchange(group, x: torch.Tensor, sent: list[int] | None, received: list[int] | None) -> torch.Tensor:
    rows = x.shape[0] if received is None else sum(received)
    out = x.new_empty(rows, *x.shape[1:])
    dist.all_to_all_single(out, x.contiguous(), received, sent, group=group)
    return out


class AllToAllDispatcher:
    """Rows go to the ranks that hold their experts, and answers come back the same way; otherwise as LocalDispatcher.

    Every rank of the group must call with the same task, so that all exchange equally often. Expert choice and capacities
    make both exchanges equal and known; drop-free routing exchanges the numbers of rows first, and waits for them.
    """

    def __init__(self, ep_size: int):
        self.ep_size = ep_size
        self.group = None  # set by DeepSpeed through set_deepspeed_parallelism, once groups exist

    def __call__(self, x_TD: torch.Tensor, routing: Routing, experts: Experts) -> torch.Tensor:
        x_ND = x_TD.index_select(0, routing.token_index_N)
        y_ND = self._equal(x_ND, experts) if routing.count_E is None else self._uneven(x_ND, routing.count_E, experts)
        weighted_ND = y_ND * routing.weight_N.to(y_ND.dtype).unsqueeze(-1)
        return y_ND.new_zeros(x_TD.shape).index_add(0, routing.token_index_N, weighted_ND)

    def _equal(self, x_ND: torch.Tensor, experts: Experts) -> torch.Tensor:
        """Blocks arrive by rank, then by expert: [R, E/R, C, D]; experts want them by expert, then by rank."""
        local, width = experts.num_experts, x_ND.shape[1]
        received = _AllToAll.apply(self.group, x_ND, None, None).view(self.ep_size, local, -1, width)
        y_ND = experts(received.transpose(0, 1).reshape(-1, width))
        answers = y_ND.view(local, self.ep_size, -1, width).transpose(0, 1).reshape(-1, width)
        return _AllToAll.apply(self.group, answers, None, None)

    def _uneven(self, x_ND: torch.Tensor, count_E: torch.Tensor, experts: Experts) -> torch.Tensor:
        local = experts.num_experts
        count_RL = count_E.view(self.ep_size, local)
        arriving_RL = _exchange(self.group, count_RL, None, None)
        sent, received, rows = (
            part.tolist() for part in torch.cat([count_RL.sum(1), arriving_RL.sum(1), arriving_RL.sum(0)]).cpu().split(
                [self.ep_size, self.ep_size, local]
            )
        )  # fmt: skip
        by_rank = _AllToAll.apply(self.group, x_ND, sent, received)
        expert_of_block = torch.arange(local, device=count_E.device).repeat(self.ep_size)
        expert_of_row = torch.repeat_interleave(expert_of_block, arriving_RL.flatten(), output_size=len(by_rank))
        order = expert_of_row.argsort(stable=True)
        y_by_expert = experts(by_rank[order], rows)
        return _AllToAll.apply(self.group, y_by_expert[order.argsort()], received, sent)


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
