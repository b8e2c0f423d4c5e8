"""Interference between two steps of training: two expert-parallel ranks measure what one does, and training does not notice."""

import json

import interference_worker
import pytest
import torch
from safetensors.torch import load_file

from helpers.ranks import run_each_size

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{ranks: what they wrote}"""
    return run_each_size(interference_worker.measure, lambda ranks: (ranks,), tmp_path_factory.mktemp)


def test_two_ranks_measure_what_one_does(folders):
    alone, together = (load_file(folder / "matrices.safetensors") for folder in folders.values())
    assert list(alone) == ["imp.blocks.0.feed_forward.down.weight", "imp.blocks.1.feed_forward.experts.w2"]
    for name, matrix_KK in alone.items():
        # relative: what divides may be small, and the weights differ by the rounding of three steps
        torch.testing.assert_close(together[name], matrix_KK, rtol=5e-3, atol=5e-3)
        assert abs(matrix_KK[0, 1]) > 0.1  # there is something to compare


@pytest.mark.parametrize("ranks", [1, 2])
def test_training_goes_on_as_if_nobody_had_measured(folders, ranks):
    measured, unmeasured = (json.loads((folders[ranks] / f"{name}.json").read_text()) for name in (True, False))
    assert len(measured) == 6 and measured == unmeasured
