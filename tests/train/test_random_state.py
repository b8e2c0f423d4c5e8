"""The state of a rank's random generators: kept as it was, and drawn afresh from the seed, the step and the rank."""

import random

import numpy as np
import pytest
import torch

from imp_ds.train import random_state

CPU = torch.device("cpu")


def draw() -> list[float]:
    """From each generator, so that a second normal number waits in two of them."""
    return [random.gauss(0, 1), random.random(), np.random.normal(), np.random.rand(), *torch.randn(3).tolist()]


@pytest.fixture(autouse=True)
def _left_as_it_was():
    with random_state.kept(CPU):
        yield


def test_a_restored_state_draws_the_same():
    draw()
    state = {name: value.clone() for name, value in random_state.capture(CPU).items()}
    expected = [draw(), draw()]
    random_state.restore(state, CPU)
    assert [draw(), draw()] == expected


def test_what_is_drawn_inside_is_as_if_it_had_not_been():
    before = random_state.capture(CPU)
    expected = draw()
    random_state.restore(before, CPU)
    with random_state.kept(CPU):
        draw()
    assert draw() == expected


def test_without_a_state_seed_step_and_rank_decide(monkeypatch):
    drawn = {}
    for place in ((0, 0, 0), (0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
        seed, step, rank = place
        monkeypatch.setattr(random_state, "rank", lambda rank=rank: rank)
        random_state.start(None, seed, step, CPU)
        values = draw()
        assert drawn.setdefault(place, values) == values
    assert len({tuple(values) for values in drawn.values()}) == 4
