"""Deep prompts: in each layer a few learned keys and values that every token sees beside those of the tokens.

Uni-Perceiver-MoE (arXiv 2206.04674; release, `modeling/layers/transformer_encoder_moe_layer.py`) tunes a frozen model so: the
prompts are layer-normed and go before the keys and values of the tokens, never among the queries. Here they are keys and values
themselves, as in prefix tuning (Li and Liang, 2021, arXiv 2101.00190): they enter after the projection, so that they need no
expert and no condition, and a conditional projection's segments stay those of the tokens.

Shapes: B batch, P prompts, L tokens of an example, D width, H heads, W width of a head, K sides: 1, or 2.
"""

import torch
import torch.nn.functional as F
from torch import nn

SHARED, SEPARATE = "shared", "separate"
CANDIDATE_PROMPTS = (SHARED, SEPARATE)


class DeepPrompts(nn.Module):
    """The prompts of one layer. forward: (keys and values of the tokens, each [B, H, L, W], whether the sequence is of the
    candidates) -> keys and values [B, H, P + L, W]."""

    def __init__(self, config):
        super().__init__()
        sides = 1 if config.candidate_prompts == SHARED else 2
        self.vectors = nn.Parameter(torch.empty(sides, 2, config.prompt_length, config.hidden_size))  # [K, 2, P, D]
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, bias=False)

    def forward(self, key_BHLW: torch.Tensor, value_BHLW: torch.Tensor, target: bool) -> tuple[torch.Tensor, torch.Tensor]:
        batch, heads, _, width = key_BHLW.shape
        vectors_2PD = self.norm(self.vectors[int(target and len(self.vectors) > 1)]).to(key_BHLW.dtype)
        prompts = vectors_2PD.unflatten(-1, (heads, width)).transpose(1, 2).unsqueeze(1).expand(-1, batch, -1, -1, -1)
        return torch.cat([prompts[0], key_BHLW], dim=2), torch.cat([prompts[1], value_BHLW], dim=2)


def see_prompts(mask: torch.Tensor | None, prompts: int) -> torch.Tensor | None:
    """A mask [..., L] of who sees which token, as one of who sees which prompt and token, [..., P + L]: all see all prompts."""
    return None if mask is None else F.pad(mask, (prompts, 0), value=True)
