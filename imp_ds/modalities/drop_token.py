"""The tokens of a regular grid, with true coordinates, and DropToken (VATT, arXiv 2104.11178, section 3.3).

Shapes: L tokens of an example, P raw values of a token, A axes of the grid.
"""

from functools import lru_cache

import numpy as np

from imp_ds.errors import UserError
from imp_ds.modalities.positions import grid_positions


@lru_cache(maxsize=64)
def _grid(sizes: tuple[int, ...]) -> np.ndarray:
    """The coordinates of a whole grid, computed once for each size: the loader asks for them with every sample."""
    positions_LA = grid_positions(*sizes)
    positions_LA.flags.writeable = False
    return positions_LA


def drop_tokens(
    values_LP: np.ndarray, grid: tuple[int, ...], drop_rate: float = 0.0, rng: np.random.Generator | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The kept tokens and their coordinates, [L', P] and float32 [L', A], in the order of the grid.

    int((1 - drop_rate) * L) tokens, but at least one, are drawn uniformly without replacement.

    Raises:
        UserError: drop_rate outside [0, 1), or a positive one without a random generator.
    """
    positions_LA = _grid(tuple(grid))
    assert len(positions_LA) == len(values_LP), "the grid does not fit the tokens"
    if not drop_rate:
        return values_LP, positions_LA.copy()
    if not 0.0 <= drop_rate < 1.0 or rng is None:
        raise UserError(
            "tokens cannot be dropped",
            got=f"drop_rate={drop_rate}, rng={rng}",
            allowed="0 <= drop_rate < 1 with rng=numpy.random.default_rng(seed)",
        )
    # The tolerance lets (1 - 0.9) * 10 = 0.9999999999999998 count as the 1 that it is on paper.
    count = max(1, int((1.0 - drop_rate) * len(values_LP) + 1e-9))
    kept = np.sort(rng.choice(len(values_LP), count, replace=False))
    return values_LP[kept], positions_LA[kept]
