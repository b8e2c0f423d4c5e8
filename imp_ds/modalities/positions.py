"""Factored learned positions, read by normalised coordinates (IMP release, `modeling/embeddings.py`).

A coordinate in [0, 1) is scaled by the number of buckets of its axis and floored, so a lower resolution or a shorter
clip reads the same tables more sparsely: any size up to the maximum works without interpolation, and tokens that
survive DropToken keep their true places.

Shapes: B batch, L tokens of an example, A axes, D width.
"""

import itertools

import numpy as np
import torch
from torch import nn

# i / n * buckets must floor to the same bucket as in exact arithmetic. Added to the coordinate, in float64, before it is scaled:
# more than i / n in float32 can be wrong by (2**-25), less than what the largest float32 below 1 lacks to 1 (2**-24).
_TOLERANCE = 1.5 * 2.0**-25


def grid_positions(*sizes: int) -> np.ndarray:
    """Normalised coordinates of a grid in row-major order: float32 [prod(sizes), len(sizes)], index / size on each axis."""
    axes = [np.arange(n, dtype=np.float32) / n for n in sizes]
    return np.array(list(itertools.product(*axes)), dtype=np.float32).reshape(-1, len(sizes))


class FactoredPositions(nn.Module):
    """One learned table for each axis; the sum is layer-normed. forward: [B, L, A] in [0, 1) -> [B, L, D]."""

    def __init__(self, buckets: list[int], width: int, eps: float):
        super().__init__()
        self.buckets = list(buckets)
        self.tables = nn.ModuleList(nn.Embedding(n, width) for n in buckets)
        self.norm = nn.LayerNorm(width, eps=eps, bias=False)

    def forward(self, positions_BLA: torch.Tensor) -> torch.Tensor:
        # axis by axis with plain numbers: a tensor of bucket counts made here would have to wait for the device in every call
        places = zip((positions_BLA.double() + _TOLERANCE).unbind(-1), self.buckets)
        index = ((places_BL * buckets).long() for places_BL, buckets in places)
        return self.norm(sum(table(index_BL) for table, index_BL in zip(self.tables, index)))
