"""`imp_ds tune` from the command line: run, scores before and after, and the tuned model, on one rank and on two."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.ranks import Ranks, command, end_well, run_ranks
from helpers.tunable import digits_run, export_untrained
from imp_ds import ImpForPreTraining, ImpModel, ImpProcessor
from imp_ds.commands.evaluate import evaluate

pytestmark = pytest.mark.distributed
STEPS = 20


@pytest.fixture(scope="module")
def model(digits_corpus, tmp_path_factory) -> Path:
    return export_untrained(digits_run(digits_corpus), tmp_path_factory.mktemp("tune") / "small")


@pytest.fixture(scope="module")
def tuned(model, tmp_path_factory) -> dict[str, Path]:
    """Output folders of one rank and of two."""
    root, found = tmp_path_factory.mktemp("tuned"), {}
    asked = ["--fraction", "0.9", "--steps", str(STEPS), "--rate", "1e-2", "--prompts", "4", "--set=train.log_every=10"]
    worlds = []
    for name, ranks in (("one", 1), ("two", 2)):
        found[name] = root / name
        line = ["tune", model, "image", *asked, "--output_dir", root / name]
        worlds.append(Ranks(command, *line, ranks=ranks, folder=root / f"log_{name}"))
    end_well(worlds, limit_s=100)
    return found


def results(folder: Path) -> dict[str, float]:
    return json.loads((folder / "results.json").read_text())


def test_tuning_learns_and_leaves_a_complete_run(tuned):
    found = results(tuned["one"])
    assert 0 < found["before/zero_shot/image/top1"] < 0.5 and 0 < found["tuned/image/top1"] <= 1
    # 0.9 of three pictures of each of ten digits are three
    assert found["train/steps"] == STEPS and found["train/samples/image"] == 30
    lines = [json.loads(line) for line in (tuned["one"] / "metrics.jsonl").read_text().splitlines()]
    assert {line["split"] for line in lines if line["kind"] == "evaluation"} == {"before", "validation", "test"}
    first, last = (line["tasks"]["image"]["loss"] for line in lines if line["kind"] == "train")
    assert last < first - 0.03
    assert list((tuned["one"] / "tensorboard").glob("*"))


def test_the_tuned_model_loads_and_is_what_was_measured(tuned, model):
    folder = tuned["one"] / "model"
    scores = evaluate(folder)
    assert {name: scores[name] for name in ("tuned/image/top1", "zero_shot/image/top1")} == pytest.approx(
        {name: results(tuned["one"])[name] for name in ("tuned/image/top1", "zero_shot/image/top1")}
    )
    before, after = load_file(model / "model.safetensors"), load_file(folder / "model.safetensors")
    kept = {name for name, value in before.items() if name in after and torch.equal(value, after[name])}
    assert {name for name in before if name.startswith("imp.") and "norm" not in name} <= kept
    assert "imp.norm.weight" in before.keys() - kept
    assert after["imp.blocks.0.attention.prompts.vectors"].shape == (1, 2, 4, 64)
    assert ImpModel.from_pretrained(folder).config.prompt_length == 4
    processor = ImpProcessor.from_pretrained(folder)
    picture = torch.zeros(32, 32, 3, dtype=torch.uint8).numpy()
    chances = ImpForPreTraining.from_pretrained(folder).eval().answer(**processor(images=[picture]))
    assert chances.shape == (1, 10) and chances.sum().item() == pytest.approx(1.0)


def test_the_model_card_says_what_was_tuned(tuned):
    card = (tuned["one"] / "model" / "README.md").read_text()
    assert "Tuned from `small` on `images`, 90 % of each class, 30 samples." in card
    assert "Trained: 4 prompts in each layer (shared), the norms, a head; the rest is as it was." in card
    assert "before/zero_shot/image/top1" in card and "`tuned/image/top1`" in card


def test_two_ranks_tune_as_one_does(tuned):
    one, two = (load_file(tuned[name] / "model" / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 2e-3


def test_a_tuned_model_is_tuned_again(tuned, tmp_path):
    """Prompts and all: from where it stands."""
    folder = tuned["one"] / "model"
    asked = ["--fraction", "0.9", "--steps", "1", "--rate", "1e-9", "--prompts", "4", "--output_dir", tmp_path / "again"]
    run_ranks(command, "tune", folder, "image", *asked, ranks=1, folder=tmp_path / "log", limit_s=60)
    found = results(tmp_path / "again")
    assert found["tuned/image/top1"] == pytest.approx(found["before/tuned/image/top1"])


def test_bad_input_ends_with_one_message(model, tmp_path):
    line = ["tune", model, "image", "--fraction", "0.0001", "--output_dir", tmp_path / "out"]
    ended = Ranks(command, *line, ranks=1, folder=tmp_path / "log").wait(60)
    assert ended.codes == [2] and "without samples" in ended.outputs[0] and "Traceback" not in ended.outputs[0], str(ended)
    assert not (tmp_path / "out").exists()
