"""The guard on windows whose mean and deviation are known by hand."""

import math

import pytest

from imp_ds.train.guard import LEAST, WINDOW, Guard


def filled(deviations: float = 6.0, values=(1.0, 3.0), count: int = WINDOW) -> Guard:
    """A guard that has seen as many 1s as 3s: mean 2, deviation 1."""
    guard = Guard(deviations)
    for i in range(count):
        assert guard.anomaly("a", "loss", values[i % len(values)]) is None
    return guard


def test_a_value_beyond_six_deviations_is_named():
    assert filled().anomaly("a", "loss", 7.9) is None  # 2 + 6 * 1 = 8
    found = filled().anomaly("a", "loss", 8.5)
    assert "loss 8.5" in found and "6.5 deviations" in found and "mean 2" in found
    assert filled().anomaly("a", "loss", -100.0) is None  # better than expected is no harm


def test_tasks_and_kinds_know_nothing_of_each_other():
    guard = filled()
    assert guard.anomaly("b", "loss", 100.0) is None and guard.anomaly("a", "gradient norm", 100.0) is None
    assert guard.anomaly("a", "loss", 100.0) is not None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_never_passes_and_is_forgotten(value):
    guard = Guard(0.0)
    assert "not finite" in guard.anomaly("a", "loss", value)
    assert guard.anomaly("a", "loss", 1e30) is None  # 0 deviations: all that is finite
    guard = filled()
    guard.anomaly("a", "loss", value)
    assert guard.anomaly("a", "loss", 8.5) is not None


def test_nothing_is_judged_by_too_few_or_by_equal_values():
    assert filled(count=LEAST - 1).anomaly("a", "loss", 1e6) is None
    assert filled(count=LEAST).anomaly("a", "loss", 1e6) is not None
    assert filled(values=(2.0,)).anomaly("a", "loss", 2.1) is None


def test_only_the_last_128_count():
    guard = filled(values=(1000.0, 3000.0))
    for i in range(WINDOW):
        guard.anomaly("a", "loss", 1.0 + 2 * (i % 2))
    assert guard.anomaly("a", "loss", 8.5) is not None  # far below what was usual before


def test_a_level_that_has_changed_is_accepted_after_a_few_steps():
    """Ten deviations up: after n of them among 128 the mean is 2 + 10 n / 128 and the variance about 1 + 100 n / 128, so 12 is
    beyond mean + 6 deviations for n = 0 (8), 1 (2.1 + 6 * 1.33 = 10.1) and 2 (2.2 + 6 * 1.59 = 11.7), no more for 3."""
    guard = filled()
    assert [guard.anomaly("a", "loss", 12.0) is not None for _ in range(5)] == [True, True, True, False, False]


def test_its_state_is_all_it_needs():
    guard, other = filled(), Guard(6.0, filled().state())
    for value in (5.0, 8.5, math.nan, 9.0, 2.0):
        assert guard.anomaly("a", "loss", value) == other.anomaly("a", "loss", value)
