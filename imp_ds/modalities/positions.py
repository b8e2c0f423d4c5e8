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
_FINENESS = 2.0**18  # of places between the rows of a table


def grid_positions(*sizes: int) -> np.ndarray:
    """Normalised coordinates of a grid in row-major order: float32 [prod(sizes), len(sizes)], index / size on each axis."""
    axes = [np.arange(n, dtype=np.float32) / n for n in sizes]
    return np.array(list(itertools.product(*axes)), dtype=np.float32).reshape(-1, len(sizes))


class FactoredPositions(nn.Module):
    """One learned table for each axis; the sum is layer-normed, or as it is. forward: [B, L, A] in [0, 1) -> [B, L, D]."""

    def __init__(self, buckets: list[int], width: int, eps: float, normed: bool = True):
        super().__init__()
        self.buckets = list(buckets)
        self.tables = nn.ModuleList(nn.Embedding(n, width) for n in buckets)
        self.norm = nn.LayerNorm(width, eps=eps, bias=False) if normed else nn.Identity()

    def forward(self, positions_BLA: torch.Tensor) -> torch.Tensor:
        # axis by axis with plain numbers: a tensor of bucket counts made here would have to wait for the device in every call
        places = zip((positions_BLA.double() + _TOLERANCE).unbind(-1), self.buckets)
        index = ((places_BL * buckets).long() for places_BL, buckets in places)
        return self.norm(sum(table(index_BL) for table, index_BL in zip(self.tables, index)))


class TablePositions(nn.Module):
    """One learned vector for each row and column, as a ViT has, and one for each step; their sum. forward: [B, L, 3] (time,
    height, width) in [0, 1) -> [B, L, D].

    A grid of another size than the table's reads it bilinearly at the centres of its cells, as `F.interpolate` would resize
    it (align_corners=False). How many rows and columns a sample has is read from its last ones, (n - 1) / n: where DropToken
    left none of these, its tokens read the table as of a grid that is smaller by them.
    """

    def __init__(self, buckets: list[int], width: int):
        super().__init__()
        self.buckets = list(buckets)
        self.steps = nn.Embedding(buckets[0], width)
        self.cells = nn.Embedding(buckets[1] * buckets[2], width)

    def forward(self, positions_BL3: torch.Tensor) -> torch.Tensor:
        time_BL, *places = positions_BL3.double().unbind(-1)
        (row_BL, down_BL), (column_BL, right_BL) = (
            _between(place_BL, buckets) for place_BL, buckets in zip(places, self.buckets[1:])
        )
        total, (_, rows, columns) = self.steps(((time_BL + _TOLERANCE) * self.buckets[0]).long()), self.buckets
        for row, share_row in ((row_BL, 1 - down_BL), ((row_BL + 1).clamp(max=rows - 1), down_BL)):
            for column, share in ((column_BL, 1 - right_BL), ((column_BL + 1).clamp(max=columns - 1), right_BL)):
                total = total + self.cells(row * columns + column) * (share_row * share).unsqueeze(-1).to(total.dtype)
        return total


def _between(place_BL: torch.Tensor, buckets: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The bucket at or before the centre of each cell of a grid, and how far towards the next one the centre lies, in [0, 1)."""
    size_B1 = (1 / (1 - place_BL.amax(1, keepdim=True))).round()
    centre_BL = (place_BL + 0.5 / size_B1) * buckets - 0.5
    centre_BL = ((centre_BL * _FINENESS).round() / _FINENESS).clamp(0, buckets - 1)  # whole where the grid is the table's
    return centre_BL.long(), centre_BL.frac()
