"""What a run does not train is in no checkpoint, and yet it goes on from them on any layout, is exported whole, and refuses
another base; persistent buffers are kept bit for bit."""

import json
import shutil
from pathlib import Path

import frozen_checkpoint_worker
import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.ranks import run_ranks
from helpers.small_run import make_config, make_run
from imp_ds.errors import UserError
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.families.imp.upcycling import upcycle
from imp_ds.models.initialization import initialize_seeded
from imp_ds.train import checkpoint, run_folder

pytestmark = pytest.mark.distributed

# two ranks; experts spread and not, every stage
LAYOUTS = [
    ("cpu_zero3.json", 2), ("cpu_zero1.json", 1), ("cpu_zero0.json", 2), ("cpu_zero2_offload.json", 2), ("cpu_zero3.json", 1)
]  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """An exported model of the small run with experts, of which a head is missing."""
    folder = tmp_path_factory.mktemp("base")
    dense = ImpForPreTraining(make_config(make_run(num_experts=0)))
    initialize_seeded(dense, 3, 0.02)
    upcycle(dense, num_experts=4, moe_layers="every:2", noise=0.3, seed=5, group_examples=1).save_pretrained(folder)
    stored = load_file(folder / "model.safetensors")
    save_file({name: value for name, value in stored.items() if "image_class" not in name}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def handed(base, tmp_path_factory) -> tuple[Path, dict]:
    """The folder of a run that was handed from layout to layout, and what its ranks found."""
    folder = tmp_path_factory.mktemp("frozen")
    out = folder / "out.json"
    run_ranks(frozen_checkpoint_worker.hand_over, str(out), str(base), LAYOUTS, ranks=2, folder=folder / "logs", limit_s=150)
    return folder / "handed", json.loads(out.read_text())


def test_it_goes_on_as_if_nothing_had_happened(handed):
    _, found = handed
    assert len(found["losses"]) == 3 * len(LAYOUTS) and found["losses"] == pytest.approx(found["straight"], abs=1e-5)
    assert found["weights"] < 1e-5 and found["restored"] == [True] * len(LAYOUTS)


def test_buffers_are_kept_bit_for_bit(handed):
    """After 15 steps: 15 times 2^40 and 0 + 1 + ... + 14 = 105, which no float32 holds."""
    (handed_on, straight) = handed[1]["buffers"]
    assert handed_on == straight and handed_on[frozen_checkpoint_worker.COUNT] == 15 * 2**40 + 105
    assert handed_on.keys() == {frozen_checkpoint_worker.BIAS, frozen_checkpoint_worker.COUNT}


def test_a_checkpoint_holds_what_is_trained_and_refers_to_the_rest(handed, base):
    """Float32 weights and two moments: 12 bytes of each trained element. Beside it headers, random states and lists, which do not
    grow with a tensor's size."""
    folder, found = handed
    path = checkpoint.newest(folder)
    data = sum(file.stat().st_size for kind in ("model", "optimizer") for file in path.glob(f"{kind}-*"))
    assert 12 * found["trained"] <= data <= 12 * found["trained"] + 20_000
    assert sum(file.stat().st_size for file in path.iterdir()) <= 1.1 * 12 * found["trained"] + 2**20
    # the base, and one file that rank 0 wrote: the head that the base lacks; no layout wrote it again
    (own,) = (folder / "checkpoints" / "frozen").iterdir()
    assert load_file(own).keys() == {"objectives.image_class.parts.0.head.bias"}
    assert found["refers"] == [sorted([str(base / "model.safetensors"), f"frozen/{own.name}"])] * len(LAYOUTS)


def test_all_weights_are_read_for_an_export(handed, base):
    model = _model()
    checkpoint.Reader(checkpoint.newest(handed[0])).load_weights(model)
    stored, differing = load_file(base / "model.safetensors"), set()
    for name, value in model.named_parameters():
        if name in stored and not torch.equal(value, stored[name]):
            differing.add(name)
        assert value.isfinite().all()
    trained = {name for name in stored if name.endswith("experts.w1") or "norm" in name}
    # no task compares images with audio: the norms of those projections are trained, and nothing moves them
    assert differing == {name for name in trained if "vision_to_audio" not in name and "audio_to_vision" not in name}
    assert len(trained) < len(stored)


def test_another_base_is_refused_by_both_names(handed, base, tmp_path):
    folder = checkpoint.newest(handed[0])
    digest = checkpoint.files.hash_of(base / "model.safetensors")
    moved, other, gone = (shutil.copytree(base, tmp_path / name) for name in ("moved", "other", "gone"))
    checkpoint.Reader(folder, moved).check_base()
    assert checkpoint.Reader(folder, moved).references != checkpoint.Reader(folder).references
    stored = load_file(other / "model.safetensors")
    stored["imp.norm.bias"][0] += 1
    save_file(stored, other / "model.safetensors")
    theirs = checkpoint.files.hash_of(other / "model.safetensors")
    said = rf"(?s)got: +{other}/model.safetensors: sha256 {theirs}.*allowed: {base}/model.safetensors: sha256 {digest}"
    with pytest.raises(UserError, match=said):
        checkpoint.Reader(folder, other).check_base()
    references = json.loads((folder / "references.json").read_text())
    for entry in references.values():
        entry["path"] = entry["path"].replace(str(base), str(gone))
    elsewhere = shutil.copytree(folder, tmp_path / folder.name)
    (elsewhere / "references.json").write_text(json.dumps(references))
    shutil.rmtree(gone)
    with pytest.raises(UserError, match=rf"got: +{gone}/model.safetensors: no such file\n.*sha256 {digest}"):
        checkpoint.Reader(elsewhere).check_base()


def test_a_refused_base_leaves_the_run_as_it_was(handed, base, tmp_path):
    folder, other = shutil.copytree(handed[0], tmp_path / "run"), shutil.copytree(base, tmp_path / "other")
    run = make_run(qk_norm=False)
    run.train.init_from = str(base)
    run.save(folder / "run_config.json")
    before = (folder / "run_config.json").read_text()
    stored = load_file(other / "model.safetensors")
    save_file({name: value + 1 for name, value in stored.items()}, other / "model.safetensors")
    changed = run.model_copy(update={"train": run.train.model_copy(update={"init_from": str(other)})})
    with pytest.raises(UserError, match=rf"(?s)no longer those that it was saved with.*{other}/model.*{base}/model"):
        run_folder.claim(folder, changed, resume=True, allow_changes=True)
    assert (folder / "run_config.json").read_text() == before
    run_folder.claim(folder, run, resume=True)


def test_a_task_of_which_nothing_is_trained_is_refused(handed):
    assert "train.trainable leaves nothing to train in a task\n  got:     image_text\n" in handed[1]["idle"]


def test_a_damaged_file_of_what_is_frozen_is_named(handed, tmp_path):
    run = shutil.copytree(handed[0], tmp_path / "run")
    (own,) = (run / "checkpoints" / "frozen").iterdir()
    own.write_bytes(own.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=f"(?s)a file of a checkpoint is damaged.*{own}"):
        checkpoint.verify(run / "checkpoints" / "step_00000015")
    own.unlink()
    with pytest.raises(UserError, match=f"(?s)a file of a checkpoint is missing.*{own}"):
        checkpoint.verify(run / "checkpoints" / "step_00000015")


def test_what_no_checkpoint_refers_to_goes(handed, tmp_path):
    root = shutil.copytree(handed[0] / "checkpoints", tmp_path / "checkpoints")
    (own,) = (root / "frozen").iterdir()
    left = root / "frozen" / f"{'0' * 64}.safetensors"
    left.write_bytes(b"of a run before")
    checkpoint.frozen.remove_unreferred(root)
    assert list((root / "frozen").iterdir()) == [own]


def _model() -> ImpForPreTraining:
    """The whole model with the worker's buffers, without values."""
    model = ImpForPreTraining(make_config(make_run(qk_norm=False)))
    layer = model.imp.blocks[1].feed_forward
    layer.router.register_buffer("balance_E", torch.zeros(4))
    layer.register_buffer("calls", torch.zeros((), dtype=torch.int64))
    for value in model.parameters():
        value.data.fill_(float("nan"))
    return model
