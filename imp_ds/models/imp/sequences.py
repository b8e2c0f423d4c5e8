"""Segments as one sequence: their tokens side by side, and as how many tokens an example counts where it routes alone.

Shapes: B batch, L tokens of an example, D width.
"""

from collections.abc import Iterable

import torch

from imp_ds.moe.conditional import join
from imp_ds.moe.routing import Condition, Counted, Segment

Tokens = tuple[torch.Tensor, torch.Tensor | None]  # [B, L, D], and [B, L], False at padding, or None


def masked_mean(tokens_BLD: torch.Tensor, valid_BL: torch.Tensor | None) -> torch.Tensor:
    """Mean over the valid tokens, [B, D]; zeros for an example without any."""
    if valid_BL is None:
        return tokens_BLD.mean(1)
    weight_BL1 = valid_BL.to(tokens_BLD.dtype).unsqueeze(-1)
    return (tokens_BLD * weight_BL1).sum(1) / weight_BL1.sum(1).clamp(min=1)


def join_tokens(parts: list[Tokens]) -> Tokens:
    """Segments (tokens [B, L, D], valid [B, L] or None) as one sequence of the same form."""
    tokens_BLD = join([tokens for tokens, _ in parts])
    if all(valid_BL is None for _, valid_BL in parts):
        return tokens_BLD, None
    all_valid = lambda tokens: torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)  # noqa: E731
    return tokens_BLD, join([all_valid(tokens) if valid_BL is None else valid_BL for tokens, valid_BL in parts])


def join_segments(parts: Iterable[tuple[int, Condition]]) -> tuple[Segment, ...]:
    """Segments of those lengths and conditions; neighbours that were given the very same condition are one."""
    found = []
    for length, condition in parts:
        if found and found[-1].condition is condition:
            length += found.pop().length
        found.append(Segment(length, condition))
    return tuple(found)


def count_tokens(modalities: list[str], parts: list[Tokens], text_length: int | None) -> Counted:
    """As how many tokens each example counts for the experts' slots, when it routes alone.

    A text counts as its words, or as `text_length`, that of training, where it has fewer: so its padding does not matter, and a
    text that is padded as in training has as many slots as there. A token by itself beside other segments is a mask, and counts
    as one; what is of other modalities counts as it is without its padding.
    """
    most, tokens_B = 0, 0
    for modality, (tokens_BLD, valid_BL) in zip(modalities, parts, strict=True):
        length = tokens_BLD.shape[1]
        if modality != "text" or (length == 1 and len(parts) > 1):
            most, tokens_B = most + length, tokens_B + (length if valid_BL is None else valid_BL.sum(1))
            continue
        least = text_length or 1
        most = most + max(length, least)
        tokens_B = tokens_B + (max(length, least) if valid_BL is None else valid_BL.sum(1).clamp(min=least))
    return Counted(most, tokens_B if isinstance(tokens_B, torch.Tensor) else None)
