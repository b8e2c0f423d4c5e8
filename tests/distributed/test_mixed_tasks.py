"""Two ranks that train different tasks in one step equal one process that takes the mean of their gradients, and gradients that
are rescaled to a norm equal those of plain AdamW that are divided by their norm. All cases run one after another in the same
ranks.
"""

import json
import math

import mixed_worker
import pytest
from mixed_worker import MIXED, SHARED

from helpers.ranks import run_ranks

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("mixed") / "results.json"
    run_ranks(mixed_worker.measure_all, str(out), ranks=2, folder=out.parent, limit_s=120)
    return json.loads(out.read_text())


@pytest.mark.parametrize("name", MIXED)
def test_ranks_with_different_tasks_equal_the_mean_of_their_gradients(results, name):
    """Weights have moved by up to 10 steps x 1e-3; ranks that share experts have one task, and still samples of their own."""
    assert results["mixed"][name]["weights"] < 1e-5
    assert results["mixed"][name]["norms"] < 1e-4


@pytest.mark.parametrize("name", SHARED)
def test_a_gradient_of_given_norm_equals_plain_adamw_on_it(results, name):
    assert results["shared"][name]["weights"] < 1e-5


def test_a_loss_that_is_a_hundred_times_louder_moves_nothing_further(results):
    """The reference is that of the quiet loss."""
    assert results["shared"]["zero2_louder"]["weights"] < 1e-5


def test_means_are_of_the_ranks_that_trained_a_task(results):
    first, second, third = results["means"]
    assert first == [[True, False], {"a": {"loss": 1.0, "near": 3.0}, "b": {"loss": 2.0, "far": 5.0, "waited": 7.0}}]
    assert second == [[True, True], {"b": {"loss": 2.0, "far": 3.0, "waited": 5.5}}]
    facts, means = third
    assert facts == [True, False] and means["a"] == {"loss": 4.0, "near": 1.0}
    assert math.isnan(means["b"]["loss"]) and means["b"]["far"] == 1.0
