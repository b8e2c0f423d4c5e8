"""Which tokens of a regular grid are kept, with true coordinates: DropToken (VATT, arXiv 2104.11178, section 3.3), and what a
grid has above its budget.

Shapes: L tokens of a whole grid, A axes of it, K tokens that are kept.
"""

from functools import lru_cache

import numpy as np

from imp_ds.errors import UserError
from imp_ds.modalities.positions import grid_positions


@lru_cache(maxsize=64)
def grid_coordinates(sizes: tuple[int, ...]) -> np.ndarray:
    """`grid_positions`, float32 [L, A], computed once for each size; not to be written to."""
    positions_LA = grid_positions(*sizes)
    positions_LA.flags.writeable = False
    return positions_LA


def kept_count(budget: int, drop_rate: float) -> int:
    """K: int((1 - drop_rate) * budget) tokens, but at least one (IMP release, `modeling/stochastic.py`).

    As on paper for rates of up to eight decimals: the tolerance lets (1 - 0.9) * 10 = 0.9999999999999998 count as 1.
    """
    return max(1, int((1.0 - drop_rate) * budget + 1e-9))


def kept_tokens(total: int, budget: int, drop_rate: float = 0.0, rng: np.random.Generator | None = None) -> np.ndarray | None:
    """Indices of the `kept_count(budget, drop_rate)` tokens that are kept of `total`, ascending: [K]; None where all are.

    Args:
        total: tokens of the grid, at least budget: what is above it is left out.
        rng: they are drawn uniformly; None, as in evaluation, takes the middles of K equal stretches.

    Raises:
        UserError: drop_rate outside [0, 1), or a positive one without a random generator.
    """
    if not 0.0 <= drop_rate < 1.0 or (drop_rate and rng is None):
        raise UserError(
            "tokens cannot be dropped",
            got=f"drop_rate={drop_rate}, rng={rng}",
            allowed="0 <= drop_rate < 1 with rng=numpy.random.default_rng(seed)",
        )
    count = kept_count(budget, drop_rate)
    if count == total:
        return None
    if rng is None:
        return (2 * np.arange(count) + 1) * total // (2 * count)
    return np.sort(rng.choice(total, count, replace=False))


def write_tokens(
    blocks: np.ndarray, grid: tuple[int, ...], kept: np.ndarray | None, values_KP: np.ndarray, positions_KA: np.ndarray
) -> None:
    """Write the kept tokens and their coordinates, index / size on each axis, in the order of the grid.

    Args:
        blocks: [*grid, ...]: the values of each token on the axes after the grid's, P in all.
        kept: from `kept_tokens`.
        values_KP, positions_KA: where they are written, contiguous; values change to the type of their place.
    """
    positions_LA = grid_coordinates(tuple(grid))
    if kept is None:
        values_KP.reshape(blocks.shape)[:] = blocks
        positions_KA[:] = positions_LA
    else:
        places = np.unravel_index(kept, grid)
        values_KP.reshape(-1, *blocks.shape[len(grid) :])[:] = blocks[places]
        positions_KA[:] = positions_LA[kept]
