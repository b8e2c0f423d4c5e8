"""The bias that balances load is the same on any layout: counted over all ranks and micro-batches, and kept by checkpoints,
resume and export."""

import json

import balanced_worker
import pytest

from helpers.ranks import Ranks, end_well
from helpers.small_run import make_config, make_run
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.models.initialization import initialize_seeded
from imp_ds.train import checkpoint

pytestmark = pytest.mark.distributed

LAYOUTS = [("cpu_zero1.json", 1, 1), ("cpu_zero3.json", 2, 1), ("cpu_zero2.json", 2, 2)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one process found, and what two did that were handed from layout to layout; and their folder."""
    folder = tmp_path_factory.mktemp("balanced")
    runs = {"straight": (1, LAYOUTS[:1]), "handed": (2, LAYOUTS)}
    worlds = (
        Ranks(balanced_worker.hand_over, str(folder / f"{name}.json"), layouts, 3, ranks=ranks, folder=folder / f"{name}_logs")
        for name, (ranks, layouts) in runs.items()
    )
    end_well(worlds, limit_s=150)
    return *(json.loads((folder / f"{name}.json").read_text()) for name in runs), folder / "handed"


def test_ranks_micro_batches_and_checkpoints_change_nothing(found):
    straight, handed, _ = found
    assert handed["raises"] == straight["raises"]
    assert handed["losses"] == pytest.approx(straight["losses"], abs=1e-4)


def test_each_step_moves_each_bias_by_one_rate_at_most(found):
    raises = found[0]["raises"]
    assert len(raises) == 9 and any(any(layer) for layer in raises[-1])
    zeros = [[0] * 4] * 2
    for before, after in zip([zeros, *raises], raises):
        moves = [b - a for old, new in zip(before, after) for a, b in zip(old, new)]
        assert set(moves) <= {-1, 0, 1} and any(moves)


def test_it_is_exported_and_loaded(found, tmp_path):
    _, handed, folder = found
    model = ImpForPreTraining(make_config(make_run(**balanced_worker.MODEL)))
    initialize_seeded(model, 9, 0.02)
    checkpoint.Reader(checkpoint.newest(folder)).load_weights(model)
    model.save_pretrained(tmp_path)
    loaded = ImpForPreTraining.from_pretrained(tmp_path)
    for block, raises in zip(loaded.imp.blocks, handed["raises"][-1]):
        assert block.feed_forward.router.raises_E.tolist() == raises
        assert block.feed_forward.router.chosen_E.tolist() == [0] * 4
