"""The context of a token: what a context gate sees of its sequence beside the token itself.

Uni-Perceiver-MoE's context gate (arXiv 2206.04674) decides by concat(x, AttnPool(tokens of the sequence)). Its pooling is not
published in code; here it is attention of one learned query to the tokens as they are, softmax(x q / sqrt(D)) over the sequence.
Under a mask the pool of a token is over the tokens that it sees, so that routing betrays nothing of what follows a word.

Shapes: B samples, L tokens of a sample, R = L pools of a sample, or 1 where all tokens have the same, D width.
"""

import torch
from torch import nn


def visible(valid_BL: torch.Tensor | None, mask_LL: torch.Tensor | None) -> torch.Tensor | None:
    """Who sees whom, bool [B or 1, L or 1, L]: True where the row's token sees the column's. Padding is seen by nobody. None:
    everyone sees everyone."""
    if mask_LL is None:
        return None if valid_BL is None else valid_BL[:, None, :]
    return mask_LL[None] if valid_BL is None else valid_BL[:, None, :] & mask_LL


class ContextPool(nn.Module):
    """The pooled tokens of each sequence, or of what each of its tokens sees: x [B, L, D] -> [B, R, D], in the type of x."""

    def __init__(self, width: int):
        super().__init__()
        self.query = nn.Parameter(torch.empty(width))

    def forward(self, x_BLD: torch.Tensor, valid_BL: torch.Tensor | None, mask_LL: torch.Tensor | None) -> torch.Tensor:
        score_BRL = (x_BLD @ self.query.to(x_BLD.dtype)).unsqueeze(1) * x_BLD.shape[-1] ** -0.5
        seen = visible(valid_BL, mask_LL)
        if seen is not None:
            # not minus infinity: who sees nothing at all, padding among padding, shall get numbers
            score_BRL = score_BRL.masked_fill(~seen, torch.finfo(score_BRL.dtype).min)
        return score_BRL.softmax(-1) @ x_BLD
