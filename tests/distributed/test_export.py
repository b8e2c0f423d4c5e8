"""What was trained on two expert-parallel ranks is exported, and a fresh process without DeepSpeed gets the same from it."""

import json
import shutil
import sys
from pathlib import Path

import export_worker
import pytest
import torch
from safetensors.torch import load_file

from helpers.processes import ROOT, environment, run
from helpers.ranks import command, run_ranks
from helpers.small_run import largest_difference
from imp_ds.commands.export import export
from imp_ds.errors import UserError
from imp_ds.train import checkpoint

pytestmark = pytest.mark.distributed

HERE = Path(__file__).parent
WITH_ROOT = environment(PYTHONPATH=str(ROOT))


@pytest.fixture(scope="module")
def folder(digits_corpus, tmp_path_factory) -> Path:
    """run/: the training run; model/: its export; trained.safetensors: embeddings by the model that was trained."""
    folder = tmp_path_factory.mktemp("export")
    settings = {"data.root": digits_corpus, "data.workers": 0, "train.ep_size": 2, "train.steps": 14, "train.ema": 0.9}
    sets = [f"--set={path}={value}" for path, value in settings.items()]
    line = ["train", "digits_debug", "--output_dir", str(folder / "run"), *sets]
    run_ranks(export_worker.train, str(folder / "trained.safetensors"), *line, ranks=2, folder=folder / "logs", limit_s=120)
    run_ranks(command, "export", str(folder / "run"), str(folder / "model"), ranks=1, folder=folder / "logs")
    return folder


@pytest.fixture(scope="module")
def facts(folder) -> dict:
    done = run(
        [sys.executable, HERE / "export_reader.py", folder / "model", folder / "read.safetensors"], timeout=90, env=WITH_ROOT
    )
    return json.loads(next(line for line in done.output.splitlines() if line.startswith("FACTS "))[6:])


def test_embeddings_equal_those_of_the_trained_model(folder, facts):
    trained, read = load_file(folder / "trained.safetensors"), load_file(folder / "read.safetensors")
    assert {"0/vision_to_text", "0/audio_to_text", "0/text_to_vision", "1/vision_to_audio"} <= trained.keys()
    assert largest_difference(trained, read) < 1e-5
    # unit vectors, not the same for every input: the comparison is about something
    rows = read["0/vision_to_text"]
    assert facts["finite"] and (rows[0] - rows[1]).abs().max() > 1e-3


def test_a_fresh_process_needs_no_deepspeed_and_misses_nothing(facts):
    assert facts["classes"] == ["ImpModel", "ImpProcessor"]
    assert facts["missing"] == [] and not facts["deepspeed"] and not facts["training"]


def test_every_way_to_load_gives_the_same(facts):
    assert facts["differences"].keys() == {"class", "cpu", "auto", "split"}
    assert max(facts["differences"].values()) < 1e-5
    assert facts["devices"]["split"] == ["cpu", "disk"]


def test_weights_are_safetensors_only(folder):
    files = sorted(p.relative_to(folder / "model").as_posix() for p in (folder / "model").rglob("*") if p.is_file())
    assert "model.safetensors" in files and "config.json" in files and "README.md" in files
    assert {Path(name).suffix for name in files} <= {".safetensors", ".json", ".md", ".png", ".py"}
    assert not list(folder.glob(".staging*"))


def test_evaluation_of_the_export_gives_the_scores_of_the_run(folder):
    out = folder / "scores.json"
    run_ranks(command, "eval", str(folder / "model"), "--output", str(out), ranks=1, folder=folder / "logs")
    scores, of_run = json.loads(out.read_text()), json.loads((folder / "run" / "results.json").read_text())
    others = ("train/", "ema/", "validation/")
    assert scores == pytest.approx({name: value for name, value in of_run.items() if not name.startswith(others)})
    assert {"zero_shot/image/top1", "zero_shot/video/top1", "zero_shot/audio/top1"} <= scores.keys()


def test_the_average_of_the_weights_is_exported_with_its_own_scores(folder):
    run_ranks(command, "export", str(folder / "run"), str(folder / "averaged"), "--ema", ranks=1, folder=folder / "logs")
    reader = checkpoint.Reader(checkpoint.newest(folder / "run"))
    weights, stored = (load_file(folder / name / "model.safetensors") for name in ("model", "averaged"))
    for name, value in stored.items():
        torch.testing.assert_close(value.flatten(), reader.read(f"ema/{name}", 0, value.numel()), rtol=0, atol=0)
    assert largest_difference(weights, stored) > 1e-5
    out = folder / "averaged.json"
    run_ranks(command, "eval", str(folder / "averaged"), "--output", str(out), ranks=1, folder=folder / "logs")
    scores, of_run = json.loads(out.read_text()), json.loads((folder / "run" / "results.json").read_text())
    averaged = {name.removeprefix("ema/"): value for name, value in of_run.items() if name.startswith("ema/")}
    assert scores == pytest.approx({name: value for name, value in averaged.items() if not name.startswith("validation/")})
    line = next(x for x in (folder / "run" / "metrics.jsonl").read_text().splitlines() if '"evaluation"' in x)
    assert json.loads(line)["results"].keys() >= {f"ema/{name}" for name in scores}


REFUSED = {
    "no run": (lambda f, t: (t, t / "out", None), "this is not the folder of a run"),
    "a folder that is not empty": (lambda f, t: (f / "run", f / "model", None), "the folder of the export is not empty"),
    "no such step": (lambda f, t: (f / "run", t / "out", 3), "no checkpoint of this step\n  got:     3\n  allowed: 14"),
    "no place to write": (lambda f, t: (f / "run", Path("/dev/null/out"), None), "the export cannot be written"),
}  # fmt: skip


@pytest.mark.parametrize("arguments, message", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_exported_is_refused_and_leaves_nothing(folder, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        export(*arguments(folder, tmp_path))
    assert not list(tmp_path.iterdir()) and not list(folder.glob(".staging*"))


def test_a_damaged_checkpoint_is_not_exported(folder, tmp_path):
    run_dir = shutil.copytree(folder / "run", tmp_path / "run")
    file = run_dir / "checkpoints" / "step_00000014" / "model-00001.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    for step, message in ((14, r"is damaged\n  got: .*model-00001"), (None, "the run has no complete checkpoint")):
        with pytest.raises(UserError, match=message):
            export(run_dir, tmp_path / "out", step)
    assert not (tmp_path / "out").exists()
