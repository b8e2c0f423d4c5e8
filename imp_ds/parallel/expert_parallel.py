"""Experts spread over ranks, as layers that the DeepSpeed engine recognises.

DeepSpeed 0.19.8 knows a mixture of experts by its class: gradient reduction of experts, ZeRO partitions and the split of
the optimizer's groups hang on `isinstance(module, AutoEPMoELayer)` and on a few tags on the parameters. This file is the
only place that knows them. Everything else (router, experts, groups) is `imp_ds.moe`, unchanged.

Ranks 0 .. ep_size-1 form the first expert group, and so on; each holds num_experts / ep_size consecutive experts, and
groups are replicas of each other.

Shapes: T flat tokens, N rows in expert order, D width, E experts of the layer, R ranks of an expert group, L = E/R experts
held by a rank, C slots of an expert on one rank, in one part.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
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
from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import nn

from imp_ds.moe.conditional import MergedLinear, RoutedLinear
from imp_ds.moe.experts import Experts, LinearExperts
from imp_ds.moe.kernels.compute import rows_of_experts, sum_rows, take_rows
from imp_ds.moe.layer import MoELayer
from imp_ds.moe.routing import Routing
from imp_ds.moe.soft_merging import MergedExperts, MergeWeights
from imp_ds.parallel.exchange import arrive, exchange, start, sum_over_ranks


class AllToAllDispatcher:
    """Rows go to the ranks that hold their experts, and answers come back the same way; otherwise as LocalDispatcher.

    Every rank of the group must call with the same task, so that all exchange equally often. Expert choice and capacities
    make both exchanges equal and known; drop-free routing exchanges the numbers of rows first, and waits for them.

    parts: of each expert's slots, of which one travels while another is computed; None: two on a GPU, where that is possible,
    one elsewhere. Results differ by rounding alone.
    """

    def __init__(self, ep_size: int, parts: int | None = None):
        self.ep_size, self.parts = ep_size, parts
        self.group = None  # set by DeepSpeed through set_deepspeed_parallelism, once groups exist

    def __call__(self, x_TD: torch.Tensor, routing: Routing, experts: Experts | LinearExperts) -> torch.Tensor:
        fn = self._equal if routing.count_E is None else self._uneven
        y_ND, token_index_N, weight_N = fn(x_TD, routing, experts)
        return sum_rows(y_ND * weight_N.to(y_ND.dtype).unsqueeze(-1), token_index_N, len(x_TD))

    def _equal(self, x_TD: torch.Tensor, routing: Routing, experts: Experts) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Answers, and with them the tokens and weights of their rows, in the order of the parts."""
        columns = routing.token_index_N.view(self.ep_size * experts.num_experts, -1)
        parts = min(self.parts or (2 if x_TD.is_cuda else 1), columns.shape[1])
        index, weight = (
            [part.reshape(-1) for part in values.view_as(columns).chunk(parts, 1)]
            for values in (routing.token_index_N, routing.weight_N)
        )
        sent = [start(take_rows(x_TD, index_N), self.group) for index_N in index]
        # part after part: while one is computed, the next one and the answers to the one before are on their way
        back = [start(self._answers(arrive(rows, self.group), experts), self.group) for rows in sent]
        return tuple(_joined(found) for found in ([arrive(rows, self.group) for rows in back], index, weight))

    def _answers(self, rows_ND: torch.Tensor, experts: Experts) -> torch.Tensor:
        """Blocks arrive by rank, then by expert: [R, L, C, D]; experts want them by expert, then by rank."""
        local, width = experts.num_experts, rows_ND.shape[1]
        y_NO = experts(rows_ND.view(self.ep_size, local, -1, width).transpose(0, 1).reshape(-1, width))
        width = y_NO.shape[1]
        return y_NO.view(local, self.ep_size, -1, width).transpose(0, 1).reshape(-1, width)

    def _uneven(self, x_TD: torch.Tensor, routing: Routing, experts: Experts) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        local = experts.num_experts
        count_RL = routing.count_E.view(self.ep_size, local)
        arriving_RL = exchange(count_RL, self.group)
        sent, received = torch.stack([count_RL.sum(1), arriving_RL.sum(1)]).tolist()
        by_rank = exchange(take_rows(x_TD, routing.token_index_N), self.group, sent, received)
        expert_of_block = torch.arange(local, device=count_RL.device).repeat(self.ep_size)
        expert_of_row = torch.repeat_interleave(expert_of_block, arriving_RL.flatten(), output_size=len(by_rank))
        order = expert_of_row.argsort(stable=True)
        keys = {}
        if routing.key_T is not None:
            keys["key"] = exchange(routing.key_T[routing.token_index_N], self.group, sent, received)[order]
        y_by_expert = experts(by_rank[order], rows_of_experts(arriving_RL.sum(0)), **keys)
        y_ND = exchange(y_by_expert[order.argsort()], self.group, received, sent)
        return y_ND, routing.token_index_N, routing.weight_N


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class GroupMerger:
    """Each rank sums its own experts, and the group sums the parts: a matrix travels, whatever the number of tokens.

    Every rank of the group must call with the same task, hence with the same decision. The gradient of a part is the sum over the
    group's ranks, each of which has used the matrix on tokens of its own, as experts have that tokens are sent to.
    """

    def __init__(self, ep_size: int):
        self.ep_size = ep_size
        self.group = None  # set by DeepSpeed through set_deepspeed_parallelism, once groups exist

    def __call__(self, weights: MergeWeights, experts: MergedExperts) -> torch.Tensor:
        return sum_over_ranks(experts(weights), self.group)


class ExpertParallelLayer(AutoEPMoELayer):
    """What is expert-parallel of a layer whose experts are spread over `ep_size` ranks; this is the `ep_rank`-th of its group.

    It is an AutoEPMoELayer for the engine's sake alone: that class's constructor (which converts a foreign layer) is not
    run, its attributes are set here, and the forward of the other parent computes.
    """

    def __init__(self, layer: nn.Module, ep_size: int, ep_rank: int):
        nn.Module.__init__(self)
        # all that the layer is; what is replaced below must not change the layer itself
        self.__dict__.update({**layer.__dict__, "_modules": dict(layer._modules)})
        self.num_experts = layer.experts.num_experts
        self.num_local_experts = self.num_experts // ep_size
        self.experts = layer.experts.slice(ep_rank * self.num_local_experts, self.num_local_experts)
        self.dispatcher = self.spread_dispatcher(ep_size)
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


class ExpertParallelMoE(ExpertParallelLayer, MoELayer):
    """A MoELayer whose experts are spread over ranks: tokens travel."""

    spread_dispatcher = AllToAllDispatcher
    forward = MoELayer.forward


class ExpertParallelRoutedLinear(ExpertParallelLayer, RoutedLinear):
    """A RoutedLinear whose experts are spread over ranks: tokens travel."""

    spread_dispatcher = AllToAllDispatcher
    forward = RoutedLinear.forward


class ExpertParallelMergedLinear(ExpertParallelLayer, MergedLinear):
    """A MergedLinear whose experts are spread over ranks: parts of a matrix travel."""

    spread_dispatcher = GroupMerger
    forward = MergedLinear.forward


SPREAD = {MoELayer: ExpertParallelMoE, RoutedLinear: ExpertParallelRoutedLinear, MergedLinear: ExpertParallelMergedLinear}


def spread_experts(model: nn.Module, ep_size: int, rank: int) -> nn.Module:
    """Replace every layer of `model` that holds experts by its expert-parallel form, in place, but for those in modules that set
    `spreads_experts = False`. The model may be on meta."""
    whole = {part for module in model.modules() if not getattr(module, "spreads_experts", True) for part in module.modules()}
    for parent in [module for module in model.modules() if module not in whole]:
        for name, child in list(parent.named_children()):
            if type(child) in SPREAD:
                setattr(parent, name, SPREAD[type(child)](child, ep_size, rank % ep_size))
    return model


def split_off_experts(groups: list[dict]) -> list[dict]:
    """The optimizer's groups, those of spread experts apart, as DeepSpeed wants them; it would keep groups that become empty, and
    fail on them."""
    return [group for group in split_params_into_different_moe_groups_for_optimizer(groups) if group["params"]]


@contextmanager
def experts_may_be_frozen() -> Iterator[None]:
    """Inside, an engine may be made whose experts are spread and all frozen: ZeRO 1 and 2 insist on experts among what is trained
    (0.19.8), and have no gradients of experts to reduce then."""
    configure = DeepSpeedZeroOptimizer._configure_moe_settings

    def configure_if_trained(zero) -> None:
        if any(zero.is_moe_group(group) for group in zero.optimizer.param_groups):
            configure(zero)
        else:
            zero.has_moe_layers = False

    DeepSpeedZeroOptimizer._configure_moe_settings = configure_if_trained
    try:
        yield
    finally:
        DeepSpeedZeroOptimizer._configure_moe_settings = configure
