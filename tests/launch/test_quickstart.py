"""The command that a stranger runs first, short: everything it promises is there in the end."""

import json
import sys

import pytest

from helpers.processes import ROOT, environment, run


@pytest.mark.distributed
@pytest.mark.skipif(
    sys.prefix != str(ROOT / ".venv"), reason="would install packages into .venv: run the tests by scripts/test.sh"
)
def test_quickstart_trains_exports_loads_and_evaluates(digits_corpus, tmp_path):
    sets = [f"data.root={digits_corpus}", "train.steps=6", "model.num_hidden_layers=2", "data.workers=0"]
    options = [part for one in sets for part in ("--set", one)]
    command = ["bash", ROOT / "scripts" / "quickstart.sh", *options, "--output_dir", "run"]
    # wide enough for the table of results; the launcher's own output is not a terminal
    output = run(command, timeout=240, cwd=tmp_path, env=environment(COLUMNS="140")).output
    folder = tmp_path / "run"
    results = json.loads((folder / "results.json").read_text())
    names = {f"zero_shot/{modality}/top1" for modality in ("image", "video", "audio")}
    assert names <= results.keys() and all(0 <= results[name] <= 1 for name in names)
    assert results["train/steps"] == 6
    assert (folder / "results.png").read_bytes().startswith(b"\x89PNG")
    assert any((folder / "tensorboard").rglob("events.out.tfevents.*"))
    assert (folder / "model" / "model.safetensors").is_file()
    # the scores of the exported model, loaded in a process of its own, are those of the trained one
    table = [line for line in output.splitlines() if "zero-shot" in line and "top1" in line and "%" in line]
    for modality in ("image", "video", "audio"):
        value = f"{100 * results[f'zero_shot/{modality}/top1']:.1f} %"
        assert any(modality in line and value in line for line in table), (modality, value, table)
    for name in ("results.json", "results.png", "model", "tensorboard"):
        assert f"{folder}/{name}" in output
    assert "Traceback" not in output and "Warning" not in output
