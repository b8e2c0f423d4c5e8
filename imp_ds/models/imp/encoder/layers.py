"""The encoder's blocks: pre-norm, by default bias-free with tanh-GELU (IMP release, `modeling/transformers.py`, `attention.py`).

Any of a block's four linear layers may be conditional (`imp_ds.moe.conditional`), or the feed-forward as a whole be a mixture of
experts.

Shapes: B batch, L tokens of an example, D width, H heads, S random sites of a block.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from imp_ds.models.imp.conditions import attribute_names
from imp_ds.models.imp.configuration_imp import LINEAR_PAIRS
from imp_ds.models.imp.encoder.prompts import DeepPrompts, see_prompts
from imp_ds.moe.conditional import (
    ConditionalLinear,
    LinearByCondition,
    MergedLinear,
    RoutedLinear,
    SequenceFacts,
    layer_report,
)
from imp_ds.moe.grouping import Grouping
from imp_ds.moe.layer import MoELayer
from imp_ds.moe.routers.context import visible
from imp_ds.moe.routers.registry import build_router
from imp_ds.moe.routing import Counted, RouterReport, Segment
from imp_ds.moe.soft_merging import MergeRouter
from imp_ds.randomness import dropout

try:
    from imp_ds.models.imp.encoder import gpu_heads
except ImportError:  # Triton comes with the CUDA builds of torch alone
    gpu_heads = None

# where something may be random in a block: dropout after the attention and after the feed-forward, the noise of routers
ATTENTION_DROPOUT, FEED_FORWARD_DROPOUT, EXPERTS_NOISE = range(3)
LINEAR_NOISE = {"qkv": 3, "out": 4, "up": 5, "down": 6}
RANDOM_SITES = 7


def make_linear(config, layer: int, name: str, in_features: int, out_features: int) -> nn.Linear | ConditionalLinear:
    """The linear layer of that name in a layer: plain, or as the configuration makes it hang on the condition."""
    if name not in config.conditional_linears_of(layer):
        return nn.Linear(in_features, out_features, bias=False)
    if config.merged_conditions:
        return LinearByCondition(in_features, out_features, len(config.merged_conditions))
    decides, experts, site = config.decides(name), config.num_experts, LINEAR_NOISE[name]
    if not config.has_constant_gate:
        router = build_router(
            config.router, in_features, experts, config.options_of_router, noise=config.router_noise,
            sees_context=config.gate == "context",
        ) if decides else None  # fmt: skip
        return RoutedLinear(
            in_features, out_features, experts, router, Grouping(config.group_tokens, config.group_examples), site=site
        )
    known = {"modality": dict(ids=len(config.modalities)), "task": dict(ids=len(config.gate_tasks))}
    known["attribute"] = dict(attributes=len(attribute_names(config.modalities)))
    router = MergeRouter(
        config.hidden_size, experts, experts_per_token=config.experts_per_token, noise=config.router_noise, **known[config.gate]
    ) if decides else None  # fmt: skip
    return MergedLinear(in_features, out_features, experts, router, site=site)


def answer(linear: nn.Module, x_BLI: torch.Tensor, facts: SequenceFacts, decision=None):
    """y [B, L, O] of a linear layer, with the decision that it goes by and its report; None and None of a plain one."""
    if isinstance(linear, ConditionalLinear):
        return linear(x_BLI, facts, decision)
    return linear(x_BLI), None, None


def split_heads(
    qkv_BLX: torch.Tensor, heads: int, query_norm: nn.Module, key_norm: nn.Module
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[B, L, 3 H W] -> queries, keys and values, [B, H, L, W] each. The norms: nn.LayerNorm(W, bias=False), or nn.Identity.

    CUDA with Triton has one pass over memory for it in each direction (gpu_heads.py): what autograd makes of the plain form lays
    the three gradients side by side by a copy of its own, and takes as long as the layer's largest matrix product.
    """
    if gpu_heads is not None and qkv_BLX.is_cuda and not torch.compiler.is_exporting():
        weights = [getattr(norm, "weight", None) for norm in (query_norm, key_norm)]
        return gpu_heads.gpu_split_heads(qkv_BLX, heads, *weights, getattr(query_norm, "eps", 0.0))
    return split_heads_plainly(qkv_BLX, heads, query_norm, key_norm)


def split_heads_plainly(
    qkv_BLX: torch.Tensor, heads: int, query_norm: nn.Module, key_norm: nn.Module
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`split_heads` on any device, differentiated by autograd."""
    query, key, value = qkv_BLX.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return query_norm(query), key_norm(key), value


def attend(
    query_BHLW: torch.Tensor, key_BHSW: torch.Tensor, value_BHSW: torch.Tensor, seen: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention as a plain formula, with its weights, [B, H, L, S]: what torch SDPA computes without keeping them."""
    score_BHLS = query_BHLW @ key_BHSW.transpose(-2, -1) * query_BHLW.shape[-1] ** -0.5
    if seen is not None:
        score_BHLS = score_BHLS.masked_fill(~seen, torch.finfo(score_BHLS.dtype).min)
    weight_BHLS = score_BHLS.softmax(-1, dtype=torch.float32).to(value_BHSW.dtype)
    return weight_BHLS @ value_BHSW, weight_BHLS


ACTIVATIONS = {"gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"), "gelu": F.gelu, "silu": F.silu}


class BranchBias(nn.Module):
    """What a branch of a block adds whatever its input is. forward: [B, L, D] -> [B, L, D]."""

    def __init__(self, width: int):
        super().__init__()
        self.bias = nn.Parameter(torch.empty(width))

    def initialize_parameters(self) -> None:
        init.zeros_(self.bias)

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        return x_BLD + self.bias


class Attention(nn.Module):
    """Multi-head self-attention through torch SDPA, or, where someone asks for its weights, as a formula. QK-norm is a bias-free
    LayerNorm over the head width, shared by heads.

    forward: (x [B, L, D], what is known of the sequence) -> ([B, L, D], the reports of what routers it has).
    """

    def __init__(self, config, layer: int):
        super().__init__()
        self.config = config  # which attention it is may be changed later
        self.heads = config.num_attention_heads
        head_width = config.hidden_size // self.heads
        self.qkv = make_linear(config, layer, "qkv", config.hidden_size, 3 * config.hidden_size)
        self.out = make_linear(config, layer, "out", config.hidden_size, config.hidden_size)
        if config.qk_norm:
            self.query_norm = nn.LayerNorm(head_width, eps=config.layer_norm_eps, bias=False)
            self.key_norm = nn.LayerNorm(head_width, eps=config.layer_norm_eps, bias=False)
        else:
            self.query_norm = self.key_norm = nn.Identity()
        self.prompts = DeepPrompts(config) if config.prompt_length else None
        self.prompt_length = config.prompt_length

    def forward(self, x_BLD: torch.Tensor, facts: SequenceFacts) -> tuple[torch.Tensor, list[RouterReport]]:
        batch, length, width = x_BLD.shape
        qkv_BLD, decision, first = answer(self.qkv, x_BLD, facts)
        query, key, value = split_heads(qkv_BLD, self.heads, self.query_norm, self.key_norm)
        seen = visible(facts.valid_BL, facts.mask_LL)
        if self.prompts is not None:
            key, value = self.prompts(key, value, facts.target_side)
            seen = see_prompts(seen, self.prompt_length)
        mask = None if seen is None else seen.unsqueeze(1)  # the same for all heads
        if facts.attentions is None and self.config._attn_implementation != "eager":
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        else:
            mixed, weights = attend(query, key, value, mask)
            if facts.attentions is not None:
                facts.attentions.append(weights)
        y_BLD, _, second = answer(self.out, mixed.transpose(1, 2).reshape(batch, length, width), facts, decision)
        return y_BLD, [report for report in (first, second) if report is not None]


class FeedForward(nn.Module):
    """The feed-forward of the layers where it is no mixture of experts as a whole. forward as that of Attention."""

    def __init__(self, config, layer: int):
        super().__init__()
        self.up = make_linear(config, layer, "up", config.hidden_size, config.intermediate_size)
        self.down = make_linear(config, layer, "down", config.intermediate_size, config.hidden_size)
        self.activate = ACTIVATIONS[config.hidden_act]

    def forward(self, x_BLD: torch.Tensor, facts: SequenceFacts) -> tuple[torch.Tensor, list[RouterReport]]:
        hidden_BLF, decision, first = answer(self.up, x_BLD, facts)
        y_BLD, _, second = answer(self.down, self.activate(hidden_BLF), facts, decision)
        return y_BLD, [report for report in (first, second) if report is not None]


class ImpBlock(GradientCheckpointingLayer):
    """x += attention(norm(x)); x += feed_forward(norm(x)). forward: -> (x [B, L, D], RouterReport, or None without routers)."""

    def __init__(self, config, index: int):
        super().__init__()
        norm = partial(nn.LayerNorm, config.hidden_size, eps=config.layer_norm_eps, bias=config.block_biases)
        self.attention_norm, self.feed_forward_norm = norm(), norm()
        self.attention = Attention(config, index)
        self.is_moe = index in config.moe_layer_indices and not config.conditional_linears
        self.dropout_rate = config.hidden_dropout
        if config.block_biases:
            self.attention_bias, self.feed_forward_bias = BranchBias(config.hidden_size), BranchBias(config.hidden_size)
        else:
            self.attention_bias = self.feed_forward_bias = nn.Identity()
        if self.is_moe:
            self.feed_forward = MoELayer(
                config.hidden_size,
                config.expert_intermediate_size,
                config.num_experts,
                router=config.router,
                activation=config.expert_activation,
                noise=config.router_noise,
                sees_context=config.gate == "context",
                group_tokens=config.group_tokens,
                group_examples=config.group_examples,
                **config.options_of_router,
            )
        else:
            self.feed_forward = FeedForward(config, index)

    def linear(self, name: str) -> nn.Module:
        """The linear layer of that name (`configuration_imp.LINEARS`), of a block whose feed-forward is no mixture as a whole."""
        return getattr(self.attention if name in LINEAR_PAIRS[0] else self.feed_forward, name)

    def forward(
        self,
        x_BLD: torch.Tensor,
        valid_BL: torch.Tensor | None,
        key_BS: torch.Tensor | None = None,
        segments: tuple[Segment, ...] = (),
        mask_LL: torch.Tensor | None = None,
        counted: Counted | None = None,
        attentions: list[torch.Tensor] | None = None,
    ):
        """valid_BL: False at padding; None: there is none. mask_LL: True where the token of the row sees that of the column;
        None: everywhere. segments: whose lengths sum to L; conditional linear layers of a constant gate ask for them. key_BS: a
        random key of each sample for each site, int64 [B, RANDOM_SITES]; None: nothing is random. counted, attentions: as
        `SequenceFacts` has them.
        """
        facts = SequenceFacts(valid_BL, mask_LL, segments, key_BS, counted, attentions)
        attended_BLD, reports = self.attention(self.attention_norm(x_BLD), facts)
        x_BLD = x_BLD + dropout(self.attention_bias(attended_BLD), self.dropout_rate, facts.key_B(ATTENTION_DROPOUT))
        normed_BLD = self.feed_forward_norm(x_BLD)
        if self.is_moe:
            y_BLD, report = self.feed_forward(normed_BLD, valid_BL, facts.key_B(EXPERTS_NOISE), mask_LL, counted)
            reports = [report]
        else:
            y_BLD, further = self.feed_forward(normed_BLD, facts)
            reports = reports + further
        y_BLD = self.feed_forward_bias(y_BLD)
        return x_BLD + dropout(y_BLD, self.dropout_rate, facts.key_B(FEED_FORWARD_DROPOUT)), layer_report(reports)
