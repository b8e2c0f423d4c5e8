"""The encoder's blocks: pre-norm, bias-free, tanh-GELU (IMP release, `modeling/transformers.py`, `attention.py`).

Shapes: B batch, L tokens of an example, D width, H heads, S random sites of a block.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from imp_ds.moe.layer import MoELayer
from imp_ds.moe.routing import Segment
from imp_ds.randomness import dropout

RANDOM_SITES = 3  # of a block: dropout after the attention, the router's noise, dropout after the feed-forward


def visible(valid_BL: torch.Tensor | None, mask_LL: torch.Tensor | None) -> torch.Tensor | None:
    """What attention may look at, bool [B or 1, 1, L or 1, L]: True where a row's token sees a column's; None: everything."""
    if mask_LL is None:
        return None if valid_BL is None else valid_BL[:, None, None, :]
    return mask_LL[None, None] if valid_BL is None else valid_BL[:, None, None, :] & mask_LL


class Attention(nn.Module):
    """Multi-head self-attention through torch SDPA. QK-norm is a bias-free LayerNorm over the head width, shared by heads."""

    def __init__(self, config):
        super().__init__()
        self.heads = config.num_attention_heads
        head_width = config.hidden_size // self.heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        if config.qk_norm:
            self.query_norm = nn.LayerNorm(head_width, eps=config.layer_norm_eps, bias=False)
            self.key_norm = nn.LayerNorm(head_width, eps=config.layer_norm_eps, bias=False)
        else:
            self.query_norm = self.key_norm = nn.Identity()

    def forward(self, x_BLD: torch.Tensor, valid_BL: torch.Tensor | None, mask_LL: torch.Tensor | None = None) -> torch.Tensor:
        batch, length, width = x_BLD.shape
        query, key, value = self.qkv(x_BLD).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mask = visible(valid_BL, mask_LL)
        mixed = F.scaled_dot_product_attention(self.query_norm(query), self.key_norm(key), value, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    """The dense feed-forward of the layers that hold no experts."""

    def __init__(self, config):
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.up(x_BLD), approximate="tanh"))


class ImpBlock(GradientCheckpointingLayer):
    """x += attention(norm(x)); x += feed_forward(norm(x)). forward: -> (x [B, L, D], RouterReport, or None when dense)."""

    def __init__(self, config, index: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, bias=False)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, bias=False)
        self.is_moe = index in config.moe_layer_indices
        self.dropout_rate = config.hidden_dropout
        if self.is_moe:
            self.feed_forward = MoELayer(
                config.hidden_size,
                config.expert_intermediate_size,
                config.num_experts,
                router=config.router,
                activation=config.expert_activation,
                capacity_factor=config.capacity_factor,
                noise=config.router_noise,
                group_tokens=config.group_tokens,
                group_examples=config.group_examples,
                **config.router_options,
            )
        else:
            self.feed_forward = FeedForward(config)

    def forward(
        self,
        x_BLD: torch.Tensor,
        valid_BL: torch.Tensor | None,
        key_BS: torch.Tensor | None = None,
        segments: tuple[Segment, ...] = (),
        mask_LL: torch.Tensor | None = None,
    ):
        """valid_BL: False at padding; None: there is none. mask_LL: True where the token of the row sees that of the column;
        None: everywhere. segments: whose lengths sum to L. key_BS: a random key of each sample for each site, int64
        [B, RANDOM_SITES]; None: nothing is random.
        """
        attention_B, router_B, feed_forward_B = (None,) * RANDOM_SITES if key_BS is None else key_BS.unbind(1)
        attended_BLD = self.attention(self.attention_norm(x_BLD), valid_BL, mask_LL)
        x_BLD = x_BLD + dropout(attended_BLD, self.dropout_rate, attention_B)
        normed_BLD = self.feed_forward_norm(x_BLD)
        if self.is_moe:
            y_BLD, report = self.feed_forward(normed_BLD, valid_BL, router_B)
        else:
            y_BLD, report = self.feed_forward(normed_BLD), None
        return x_BLD + dropout(y_BLD, self.dropout_rate, feed_forward_B), report
