"""Checkpoints: go on under any layout, bit for bit under the same; damage is named and the last complete one is used."""

import json
import shutil
from pathlib import Path

import checkpoint_worker
import pytest
from safetensors.torch import load_file

from helpers.ranks import run_ranks
from helpers.small_run import largest_difference
from imp_ds.errors import UserError
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.models.initialization import initialize_seeded
from imp_ds.train import checkpoint

pytestmark = pytest.mark.distributed

SAME = ("cpu_zero2_ep2.json", 2)
LAYOUTS = [
    SAME, ("cpu_zero0.json", 1), ("cpu_zero0.json", 2), ("cpu_zero1.json", 1), ("cpu_zero2.json", 1),
    ("cpu_zero2_offload.json", 2),
    ("cpu_zero3.json", 1), ("cpu_zero3.json", 2),
]  # fmt: skip
ALONE = ["cpu_zero1.json", "cpu_zero3.json"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder with checkpoints of two ranks, and how each layout went on from them."""
    folder = tmp_path_factory.mktemp("checkpoint")
    run_ranks(checkpoint_worker.save_and_load, str(folder), LAYOUTS, ranks=2, folder=folder / "two", limit_s=240)
    run_ranks(checkpoint_worker.load_alone, str(folder), ALONE, ranks=1, folder=folder / "one", limit_s=60)
    return folder


def results(folder: Path, name: str):
    return json.loads((folder / f"{name}.json").read_text()), load_file(folder / f"{name}.safetensors")


@pytest.mark.parametrize("file, ep_size, ranks", [(*layout, 2) for layout in LAYOUTS] + [(file, 1, 1) for file in ALONE])
def test_every_layout_goes_on_as_if_nothing_had_happened(saved, file, ep_size, ranks):
    losses, weights = results(saved, f"{file.removesuffix('.json')}_ep{ep_size}_ranks{ranks}")
    straight, straight_weights = results(saved, "straight_unclipped" if "zero0" in file else "straight")
    assert len(losses) == 6 and losses == pytest.approx(straight, abs=1e-5)
    assert largest_difference(weights, straight_weights) < 1e-5


def test_the_same_layout_goes_on_bit_for_bit(saved):
    losses, weights = results(saved, "cpu_zero2_ep2_ep2_ranks2")
    straight, straight_weights = results(saved, "straight")
    assert losses == straight
    assert largest_difference(weights, straight_weights) == 0


@pytest.fixture
def run_dir(saved, tmp_path) -> Path:
    """A copy of the run with the checkpoints of steps 3 and 5, to damage."""
    shutil.copytree(saved / "run", tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["latest", "step_00000003", "step_00000005"]
    assert (folder / "latest").read_text() == "step_00000005\n"
    return tmp_path / "run"


def found(run_dir: Path) -> tuple[str | None, list[str]]:
    warnings = []
    path = checkpoint.newest(run_dir, warn=warnings.append)
    return None if path is None else path.name, warnings


def test_a_complete_checkpoint_is_found_without_a_word(run_dir):
    assert found(run_dir) == ("step_00000005", [])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "flipped byte of weights": (lambda p: _flip(p / "model-00001.safetensors"), "model-00001.safetensors"),
    "flipped byte of the optimizer": (lambda p: _flip(p / "optimizer-00000.safetensors"), "optimizer-00000.safetensors"),
    "flipped byte of the state": (lambda p: _flip(p / "state.json"), "state.json"),
    "missing file": (lambda p: (p / "optimizer-00001.safetensors").unlink(), "optimizer-00001.safetensors"),
    "cut file": (lambda p: (p / "index.json").write_text("{"), "index.json"),
    "missing manifest": (lambda p: (p / "manifest.json").unlink(), "manifest"),
    "truncated manifest": (lambda p: (p / "manifest.json").write_text((p / "manifest.json").read_text()[:100]), "manifest"),
    "empty manifest": (lambda p: (p / "manifest.json").write_text(""), "manifest"),
    "manifest of nothing": (lambda p: (p / "manifest.json").write_text("{}"), "manifest"),
    "manifest of another form": (lambda p: (p / "manifest.json").write_text('["state.json"]'), "manifest"),
    "nothing but the folder": (lambda p: [file.unlink() for file in p.iterdir()], "manifest"),
}  # fmt: skip


@pytest.mark.parametrize("damage, named", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_named_and_the_last_complete_one_is_used(run_dir, damage, named):
    damage(run_dir / "checkpoints" / "step_00000005")
    name, warnings = found(run_dir)
    assert name == "step_00000003"
    assert len(warnings) == 1 and "step_00000005" in warnings[0] and named in warnings[0]


def test_leftovers_of_a_killed_save_are_not_taken_for_a_checkpoint(run_dir):
    folder = run_dir / "checkpoints"
    shutil.copytree(folder / "step_00000005", folder / ".staging-step_00000007")
    assert found(run_dir) == ("step_00000005", [])


def test_when_all_are_damaged_there_is_none(run_dir):
    for folder in (run_dir / "checkpoints").glob("step_*"):
        (folder / "state.json").unlink()
    name, warnings = found(run_dir)
    assert name is None and len(warnings) == 2


OTHERS = {
    "more experts": (dict(num_experts=8), r"of another shape: .*experts"),
    "fewer experts": (dict(num_experts=2), r"of another shape: .*experts"),
    "more layers": (dict(num_hidden_layers=3), r"missing: imp\.blocks\.2"),
    "fewer layers": (dict(num_hidden_layers=1, num_experts=0), r"not in this model: .*blocks\.1"),
    "wider": (dict(common_dim=64), "of another shape: .*projections"),
    "wider experts": (dict(intermediate_size=128), "of another shape: .*experts"),
    "gated experts": (dict(expert_activation="geglu"), "missing: .*experts"),
}  # fmt: skip


@pytest.mark.parametrize("settings, named", OTHERS.values(), ids=OTHERS.keys())
def test_the_checkpoint_of_another_model_is_refused_by_what_differs(saved, settings, named):
    config = checkpoint_worker.make_model_config(**settings)
    model = ImpForPreTraining(config)
    initialize_seeded(model, 0, config.initializer_range)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(UserError, match="the checkpoint is of another model") as raised:
        checkpoint.Reader(saved / "run" / "checkpoints" / "step_00000005").load_weights(model)
    assert raised.match(named) and raised.match("fix: ")
    assert largest_difference(before, dict(model.named_parameters())) == 0


def test_a_rank_that_cannot_write_fails_all_and_leaves_the_last_one(tmp_path):
    ended = run_ranks(checkpoint_worker.save_without_room, str(tmp_path), ranks=2, folder=tmp_path / "logs")
    for output in ended.outputs:
        assert "refused: the checkpoint could not be written" in output
        assert "rank 1 could not write its part: [Errno 28] No space left on device" in output
    assert found(tmp_path) == ("step_00000001", [])
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_00000001\n"
