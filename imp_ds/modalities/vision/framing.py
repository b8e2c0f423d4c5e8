"""Which part of a picture is seen, at which size, and cut into which grid of patches.

Sizes are (height, width) in pixels. Parts are cut at whole pixels.

Shapes: T frames, H height, W width, C = 3 channels.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from imp_ds.modalities.draws import below

Size = tuple[int, int]
_ATTEMPTS = 10  # crops that are drawn before the largest centred one is taken, as in the Inception crop


class Box(NamedTuple):
    """A part of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, clip_THWC: np.ndarray) -> np.ndarray:
        """That part of every frame, as a view."""
        return clip_THWC[:, self.top : self.top + self.height, self.left : self.left + self.width]


def centre_box(size: Size, aspect: float) -> Box:
    """The largest centred part of a picture whose width is `aspect` times its height, to the nearest pixel."""
    height, width = min(size[0], _pixels(size[1] / aspect)), min(size[1], _pixels(size[0] * aspect))
    return Box((size[0] - height) // 2, (size[1] - width) // 2, height, width)


def random_box(
    size: Size, aspect: float, area: tuple[float, float], change: tuple[float, float], rng: np.random.Generator
) -> Box:
    """A random part of a picture (Inception crop, arXiv 1409.4842).

    Args:
        aspect: width / height that is wanted; the part's is that times a factor, log-uniform in the range `change`.
        area: range of the share of the picture's area, uniform.
    """
    for _ in range(_ATTEMPTS):
        surface = size[0] * size[1] * (area[0] + (area[1] - area[0]) * rng.random())
        ratio = aspect * change[0] * (change[1] / change[0]) ** rng.random()
        height, width = _pixels(math.sqrt(surface / ratio)), _pixels(math.sqrt(surface * ratio))
        if height <= size[0] and width <= size[1]:
            return Box(below(size[0] - height + 1, rng), below(size[1] - width + 1, rng), height, width)
    return centre_box(size, aspect)


def _pixels(length: float) -> int:
    return max(1, round(length))


def resize(clip_THWC: np.ndarray, size: Size) -> np.ndarray:
    """Every frame at another size; the clip itself where that changes nothing.

    Bicubic with antialiasing, by torch's kernel for uint8. It is Pillow's, in vector instructions: values are equal to within 4,
    375 x 375 to 256 x 256 takes 0.23 ms instead of 1.6 ms (benchmarks/results/decoding.md).
    """
    if clip_THWC.shape[1:3] == tuple(size):
        return clip_THWC
    # contiguous, so that the kernel need not copy; and writable: torch warns of what is not, though it only reads here
    clip_TCHW = torch.from_numpy(np.require(clip_THWC, requirements="CW")).permute(0, 3, 1, 2)
    resized_TCHW = F.interpolate(clip_TCHW, size=tuple(size), mode="bicubic", antialias=True)
    return resized_TCHW.permute(0, 2, 3, 1).numpy()


def own_grid(size: Size, grid: Size, patch: Size, largest: Size | None = None) -> Size:
    """(rows, columns) for a picture of `size` at its own aspect ratio: at least as many patches as `grid` has, and no row or
    column could be left out (NaFlex, SigLIP 2, arXiv 2502.14786, section 2.4.2, rounds down and pads).

    Args:
        patch: height and width of a patch.
        largest: most rows and columns; `grid` is not larger.
    """
    rows_G, columns_G = _grids(math.prod(grid), *(largest or (math.inf, math.inf)))
    aspect_G = columns_G * patch[1] / (rows_G * patch[0])
    best = int(np.argmin(np.abs(np.log(aspect_G * (size[0] / size[1])))))
    return int(rows_G[best]), int(columns_G[best])


@lru_cache(maxsize=64)
def _grids(tokens: int, most_rows: float, most_columns: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of all such grids, those with the fewest patches first: of two that fit equally well it is taken."""
    pairs = {(n, -(-tokens // n)) for n in range(1, tokens + 1)}
    pairs |= {(columns, rows) for rows, columns in pairs}
    kept = sorted((r * c, r, c) for r, c in pairs if r <= most_rows and c <= most_columns)
    _, rows_G, columns_G = np.array(kept).T
    return rows_G, columns_G


def grid_within(size: Size, budget: int, patch: Size, largest: Size | None = None) -> Size:
    """(rows, columns) of the largest grid for a picture of `size` at its own aspect ratio that has at most `budget` patches:
    those of the largest scale s with ceil(s H / h) ceil(s W / w) <= budget (NaFlex, SigLIP 2, arXiv 2502.14786).

    Args:
        patch: height and width of a patch, h and w.
        largest: most rows and columns; None: no bound.

    At the largest scale a row or a column is just full: there the scale is i h / H or i w / W with a whole i. In integers.
    """
    (high, wide), (most_rows, most_columns) = (size[0] * patch[1], size[1] * patch[0]), largest or (budget, budget)
    i_N = np.arange(1, budget + 1, dtype=np.int64)
    rows_G = np.concatenate([i_N, -(-i_N * high // wide)])  # H / h over W / w is H w over W h
    columns_G = np.concatenate([-(-i_N * wide // high), i_N])
    scale_G = np.concatenate([i_N / high, i_N / wide])
    fits_G = (rows_G * columns_G <= budget) & (rows_G <= most_rows) & (columns_G <= most_columns)
    if not fits_G.any():  # a strip that is longer than the bound: as long as the bound is
        return max(1, min(most_rows, budget)) if high > wide else 1, max(1, min(most_columns, budget)) if wide >= high else 1
    best = int(np.argmax(np.where(fits_G, scale_G, -1.0)))
    return int(rows_G[best]), int(columns_G[best])
