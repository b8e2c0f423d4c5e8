"""A share of each class: how many rows, which, and what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest

from imp_ds.data.order.subset import class_fraction
from imp_ds.errors import UserError

# 200 rows of class 0, 60 of class 1, 50 of class 2, in turns; two that cannot be read
LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, -1], [200, 60, 50, 2]))
READER = SimpleNamespace(name="birds[train]", source=None, class_names=["tit", "owl", "jay"], damage=[])


def rows(fraction: float, seed: int = 0) -> list[int]:
    return class_fraction(READER, LABELS, fraction, seed).rows.tolist()


@pytest.mark.parametrize("fraction, each", [(0.01, (2, 1, 1)), (0.1, (20, 6, 5)), (1.0, (200, 60, 50))])
def test_each_class_gives_its_share(fraction, each):
    """0.6 and 0.5 of a row are one."""
    found = rows(fraction)
    assert tuple(np.bincount(LABELS[found])) == each
    assert found == sorted(set(found))


def test_the_seed_says_which_rows_and_a_larger_share_holds_a_smaller_one():
    assert rows(0.1) == rows(0.1) != rows(0.1, seed=1)
    assert set(rows(0.05)) < set(rows(0.1)) < set(rows(0.7))


def test_an_empty_class_is_named_with_what_would_do():
    with pytest.raises(UserError) as raised:
        rows(0.008)
    # 0.008 * 60 = 0.48 and 0.008 * 50 = 0.4; half of a row of 50 is a fraction of 0.01
    message = str(raised.value)
    assert "birds[train]: the fraction leaves class 1 (owl) without samples" in message
    assert "0.008 of 60 samples" in message and "0.01 to 1" in message and "--fraction 0.01" in message
    assert len(rows(0.01)) == 4
