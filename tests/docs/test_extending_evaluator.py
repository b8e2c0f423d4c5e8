"""The evaluator of docs/extending.md, copied out of the page: it measures, is shown and written, and is refused by name."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.pages import import_beside, run_beside, shown_files
from imp_ds import (
    Classification,
    DataSettings,
    ImpForPreTraining,
    ModelSettings,
    RunConfig,
    Source,
    Task,
    TrainSettings,
    Views,
    VisionView,
)  # fmt: skip
from imp_ds.errors import UserError
from imp_ds.evaluation import build_evaluators, evaluate
from imp_ds.evaluation.picture import panels_of
from imp_ds.families.card import write_card
from imp_ds.families.imp import model_card
from imp_ds.models.imp import ImpImageProcessor
from imp_ds.registry import EVALUATORS
from imp_ds.train.recording.final_results import read_results, write_results
from imp_ds.train.recording.history import cut_lines
from imp_ds.train.recording.monitor import Monitor

LABELS = [0, 0, 1, 1, 1, 2, 2, 0, 0, 0, 1, 2, 2, 2, 1, 1]


@pytest.fixture
def evaluators(tmp_path, monkeypatch):
    """The page's module of evaluators. What it registers is forgotten again."""
    yield import_beside(shown_files("extending.md"), "my_evaluators", tmp_path, monkeypatch)
    EVALUATORS._found.pop("neighbours", None)


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def neighbour_run(root: Path, **fields) -> RunConfig:
    """16 pictures of noise, of three labels, and a run that classifies them and evaluates them by their neighbours."""
    lines = []
    (root / "noise" / "validation").mkdir(parents=True)
    for number, label in enumerate(LABELS):
        Image.fromarray(picture(number)).save(root / "noise" / "validation" / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "label": label}))
    (root / "noise" / "validation" / "metadata.jsonl").write_text("\n".join(lines))
    source, views = Source(path="noise", vision="file_name", label="label"), Views(vision=VisionView(height=8, width=8))
    shape = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_experts=0)
    shape |= dict(vision_patch=(1, 4, 4), vision_max=(1, 8, 8), common_dim=8)
    record = {"name": "shades", "evaluator": "neighbours", "modality": "vision", "source": source, "views": views, **fields}
    task = Task(name="shade", source=source, views=views, batch_size=4,
                objectives=[Classification(modality="vision", num_classes=3)])  # fmt: skip
    data = DataSettings(root=str(root), cache_dir=str(root / "cache"))
    return RunConfig.model_validate({
        "name": "noise", "model": ModelSettings(size="tiny", **shape), "data": data, "tasks": [task], "evaluations": [record],
        "train": TrainSettings(steps=2),
    })  # fmt: skip


def test_an_evaluator_measures_is_shown_and_written(tmp_path, evaluators, capsys):
    run = neighbour_run(tmp_path, options={"k": 3})
    assert RunConfig.model_validate_json(run.model_dump_json()) == run
    config = run.model.to_config(20, run.tasks)
    torch.manual_seed(0)
    model = ImpForPreTraining(config)
    pictures = ImpImageProcessor(size=8, patch=config.vision_patch)
    processor = SimpleNamespace(image_processor=pictures, tokenizer=None)
    found = build_evaluators(run, processor, "validation", batch_size=5)
    assert [evaluator.kind for evaluator in found] == ["neighbours", "heads"]
    metrics = evaluate(model, found)
    images = [picture(number) for number in range(16)]
    with torch.no_grad():  # against numpy, picture by picture
        model.imp.eval()
        inputs = [pictures(image, return_tensors="pt") for image in images]
        pooled = [model.imp.encode("vision", dict(one)).pooled_BD[0].double().numpy() for one in inputs]
    unit = np.stack(pooled) / np.linalg.norm(pooled, axis=1, keepdims=True)
    near = unit @ unit.T - 9 * np.eye(16)
    votes = np.array(LABELS)[np.argsort(-near, axis=1)[:, :3]]
    best = [min(set(row), key=lambda label: (-row.count(label), label)) for row in votes.tolist()]  # of equals the smallest label
    expected = np.mean(np.array(best) == LABELS)
    (metric,) = [metric for metric in metrics if metric.name == "neighbours/shades/accuracy"]
    assert metric.value == pytest.approx(expected) and (metric.unit, metric.better) == ("share", "higher")
    monitor = Monitor(tmp_path / "run", run, enabled=True, total_steps=2)
    monitor.record_evaluation(1, metrics, {})
    write_results(tmp_path / "run", metrics, found, monitor, 1)
    monitor.close()
    assert f"neighbours shades {100 * expected:.1f} %" in capsys.readouterr().out
    again = cut_lines(tmp_path / "run" / "metrics.jsonl", 1, lambda line: None)
    assert metric.shown.panel in panels_of(again) and read_results(tmp_path / "run") == metrics
    said = model_card.card(run, config, metrics)
    card = write_card(tmp_path, run, said, metrics, {}, experts=0, steps=1, world_size=1, parameters=1, split="validation")
    assert f"| `neighbours/shades/accuracy` | {100 * expected:.1f} % |" in card.read_text()


def test_names_and_options_of_evaluators_are_refused_with_a_suggestion(tmp_path, evaluators):
    for fields, said in (
        ({"evaluator": "neighbors"}, "unknown evaluator.*did you mean neighbours"),
        ({"options": {"K": 1}}, "options of the evaluator neighbours: K.*allowed: k"),
        ({"options": {"k": 0}}, "options of the evaluator neighbours: k.*greater than or equal to 1"),
        ({"evaluator": None, "options": {"k": 1}}, "evaluator names none"),
        ({"evaluator": "heads", "options": {"k": 1}}, "the evaluator heads takes no options"),
    ):
        with pytest.raises(ValueError, match=f"(?s){said}"):
            neighbour_run(tmp_path / str(len(said)), **fields)
    page = shown_files("extending.md")["my_evaluators.py"]
    with pytest.raises(UserError, match="(?s)NeighbourEvaluator does not define all parts.*no run"):
        exec(page.replace("    def run(self", "    def measure(self"), {"__name__": "mine"})
    with pytest.raises(UserError, match="two of one name: the evaluator captioning"):
        exec(page.replace('kind = "neighbours"', 'kind = "captioning"'), {"__name__": "mine"})


def test_a_command_without_a_recipe_is_given_the_module(tmp_path):
    run = neighbour_run(tmp_path, evaluator=None, templates=["a {}"])
    text = run.model_dump_json().replace('"evaluator":null,"options":{}', '"evaluator":"neighbours","options":{"k":3}')
    (tmp_path / "run.json").write_text(text)
    script = """
import sys
sys.stderr = sys.stdout
from imp_ds.cli import main
for more in ([], ["--import", "my_evaluators"], ["--import=none_such"]):
    sys.argv = ["imp_ds", "recipes", "show", "run.json", *more]
    try:
        main()
    except SystemExit as end:
        print("ended with", end.code, flush=True)
"""
    out = run_beside(shown_files("extending.md"), script, tmp_path)
    refused, shown, missing = out.split("ended with ")[:3]
    assert "unknown evaluator" in refused and "--import MODULE" in refused
    assert shown.startswith("2") and "evaluator: neighbours" in shown and "k: 3" in shown
    assert missing.startswith("0") and "the module of --import is not found" in missing
