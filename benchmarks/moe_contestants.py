"""The layers that benchmarks/moe_layer.py compares, each [B, L, D] -> (output, loss or None), of the same active arithmetic.

Widths: two matrices of D x F, or three of D x 2F/3 where a peer knows gated experts only. One expert for each token on
average: capacity 1.0, or top-1 without dropping. Every weight is drawn anew from N(0, 0.02), so that routers are near balance.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from imp_ds.moe.kernels.compute import stacked_experts
from imp_ds.moe.layer import MoELayer
from imp_ds.moe.routing import RoutingContext

GROUP_TOKENS = 2048


class Dense(nn.Module):
    """The feed-forward without experts, and one expert of DeepSpeed's layer."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class DenseLayer(Dense):
    def forward(self, x):
        return super().forward(x), None


class Ours(MoELayer):
    """The layer of the models, expert choice."""

    def __init__(self, width: int, hidden: int, experts: int):
        super().__init__(width, hidden, experts, group_tokens=GROUP_TOKENS)

    def forward(self, x):
        y, report = super().forward(x)
        return y, report.z_loss


class Spread(nn.Module):
    """The same with its experts spread over all ranks."""

    def __init__(self, layer: Ours, ranks: int, rank: int):
        super().__init__()
        from imp_ds.parallel.expert_parallel import ExpertParallelMoE

        self.layer = ExpertParallelMoE(layer, ranks, rank)
        self.layer.set_deepspeed_parallelism()

    def forward(self, x):
        y, report = self.layer(x)
        return y, report.z_loss


class Plain(MoELayer):
    """The same router and weights, computed as one writes it first: gather, bmm, gelu, bmm, index_add."""

    def __init__(self, width: int, hidden: int, experts: int):
        super().__init__(width, hidden, experts, group_tokens=GROUP_TOKENS)

    def forward(self, x):
        tokens = x.numel() // x.shape[-1]
        index_N, weight_N, _, report, x_TD = self.router(x.reshape(tokens, -1), RoutingContext(min(GROUP_TOKENS, tokens)))
        w1, w2 = self.experts.w1.to(x.dtype), self.experts.w2.to(x.dtype)
        y_ND = stacked_experts(x_TD[index_N], None, w1, w2, None) * weight_N.to(x.dtype).unsqueeze(1)
        return torch.zeros_like(x_TD).index_add(0, index_N, y_ND).view_as(x), report.z_loss


class DeepSpeedMoE(nn.Module):
    """deepspeed.moe.layer.MoE, top-1 with capacity 1.0, without random token selection. Needs a process group."""

    def __init__(self, width: int, hidden: int, experts: int):
        super().__init__()
        from deepspeed.moe.layer import MoE

        self.moe = MoE(width, Dense(width, hidden), experts, k=1, capacity_factor=1.0, use_rts=False)
        self.moe.set_deepspeed_parallelism()

    def forward(self, x):
        y, balance, _ = self.moe(x)
        return y, balance


def _gated(hidden: int) -> int:
    """2/3 of it, as the arithmetic of three matrices is that of two; a multiple of 8, as grouped products want it."""
    return -(-hidden * 2 // 3 // 8) * 8


def _qwen_block(width: int, hidden: int, experts: int) -> nn.Module:
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    config = Qwen3MoeConfig(
        hidden_size=width, moe_intermediate_size=_gated(hidden), num_experts=experts, num_experts_per_tok=1, norm_topk_prob=False
    )
    config._experts_implementation = "grouped_mm"
    return Qwen3MoeSparseMoeBlock(config)


class Transformers(nn.Module):
    """transformers' grouped experts, in the block of Qwen3-MoE: top-1 without dropping, gated."""

    def __init__(self, width: int, hidden: int, experts: int):
        super().__init__()
        self.block = _qwen_block(width, hidden, experts)

    def forward(self, x):
        return self.block(x), None


class AutoEP(nn.Module):
    """The layer that DeepSpeed's AutoEP puts in that block's place, on one rank, with grouped products."""

    def __init__(self, width: int, hidden: int, experts: int):
        super().__init__()
        from deepspeed.module_inject.auto_ep_config import AutoEPConfig, MoELayerSpec
        from deepspeed.module_inject.auto_ep_layer import AutoEPMoELayer

        spec = MoELayerSpec(
            moe_module_name="mlp", model_family="qwen3_moe", router_name="gate", experts_name="experts",
            expert_storage="fused_3d", expert_w1_name="gate_up_proj", expert_w2_name="down_proj", expert_w3_name=None,
            num_experts=experts, top_k=1, hidden_size=width, ffn_hidden_size=_gated(hidden), score_func="softmax",
            score_apply="post", route_norm=False, gate_bias=False, return_router_logits=False,
            router_logits_capture_target="none", router_logits_capture_index=None, router_logits_capture_layer_name=None,
            has_shared_experts=False, shared_experts_name="",
        )  # fmt: skip
        self.layer = AutoEPMoELayer(spec, _qwen_block(width, hidden, experts), 1, 0, AutoEPConfig(use_grouped_mm=True))
        self.layer.set_deepspeed_parallelism()

    def forward(self, x):
        return self.layer(x), None


class Contestant(NamedTuple):
    """compiled: whether it is timed compiled too. DeepSpeed's layers ask the GPU for numbers in between and are no one graph;
    what one writes first is left as one writes it."""

    build: Callable[[int, int, int], nn.Module]
    compiled: bool = False


# the first is what the others are measured against
CONTESTANTS = {
    "dense feed-forward": Contestant(lambda width, hidden, experts: DenseLayer(width, hidden), compiled=True),
    "imp_ds": Contestant(Ours, compiled=True),
    "gather, bmm, index_add": Contestant(Plain),
    "deepspeed.moe.layer.MoE": Contestant(DeepSpeedMoE),
    "transformers grouped_mm": Contestant(Transformers, compiled=True),
    "DeepSpeed AutoEP": Contestant(AutoEP),
}


def build(name: str, width: int, hidden: int, experts: int, device, dtype) -> nn.Module:
    """A contestant with random weights; routers that ask for float32 keep it by themselves."""
    torch.manual_seed(0)
    layer = CONTESTANTS[name].build(width, hidden, experts).to(device=device, dtype=dtype)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.02)
    return layer
