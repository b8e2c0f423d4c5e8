"""`export --merge` of a run whose experts lay on two ranks: the dense model of its tasks' attributes, with the same outputs."""

from pathlib import Path

import pytest
import torch
from export_reader import make_inputs
from safetensors.torch import load_file

from helpers.ranks import command, run_ranks
from imp_ds import ImpForPreTraining, ImpModel, ImpProcessor
from imp_ds.commands.evaluate import evaluate
from imp_ds.commands.export import export
from imp_ds.errors import UserError

pytestmark = pytest.mark.distributed

TASKS = ("image_text", "speech_text")


def train(folder: str, data: str) -> None:
    sets = {
        "data.root": data, "data.workers": 0, "train.ep_size": 2, "train.steps": 3, "model.gate": "attribute",
        "model.conditional_linears": '["qkv","out","up","down"]', "model.router_noise": 1.0, "model.num_hidden_layers": 2,
        "model.moe_layers": "all", "evaluations.image.task": TASKS[0], "evaluations.video.task": TASKS[0],
        "evaluations.audio.task": TASKS[1],
    }  # fmt: skip
    command("train", "digits_debug", "--output_dir", folder, *(f"--set={path}={value}" for path, value in sets.items()))


@pytest.fixture(scope="module")
def folder(digits_corpus, tmp_path_factory) -> Path:
    """run/: the training run; whole/: its export; merged/: that of two tasks, merged."""
    folder = tmp_path_factory.mktemp("merged")
    run_ranks(train, str(folder / "run"), str(digits_corpus), ranks=2, folder=folder / "logs", limit_s=120)
    export(folder / "run", folder / "full")
    tasks = [f"--task={task}" for task in TASKS]
    run_ranks(command, "export", str(folder / "run"), str(folder / "merged"), "--merge", *tasks, ranks=1, folder=folder / "logs")
    return folder


def embeddings(model: ImpModel) -> dict[str, torch.Tensor]:
    inputs, _ = make_inputs(ImpProcessor.from_pretrained(model.name_or_path))
    waveforms = {name: x for name, x in inputs.items() if name.startswith(("input", "feature", "attention"))}
    images = {name: x for name, x in inputs.items() if name.startswith(("pixel", "input_ids", "attention"))}
    with torch.no_grad():
        found = {task: model(**given, task=task).embeddings for task, given in zip(TASKS, (images, waveforms))}
    return {f"{task}/{name}": vectors for task, of_task in found.items() for name, vectors in of_task.items()}


def test_outputs_are_those_of_the_experts(folder):
    full, merged = (embeddings(ImpModel.from_pretrained(folder / name)) for name in ("full", "merged"))
    assert {"image_text/vision_to_text", "image_text/text_to_vision", "speech_text/audio_to_text"} <= merged.keys()
    assert max((full[name] - merged[name]).abs().max().item() for name in full) < 1e-5
    assert all(vectors.isfinite().all() for vectors in merged.values())


def test_it_is_dense_with_a_copy_for_each_condition_and_knows_them(folder):
    config = ImpModel.from_pretrained(folder / "merged").config
    read = ("input_vision+target_text+token_", "input_audio+target_text+token_")
    assert config.merged_conditions == [
        f"{read[0]}vision", f"{read[0]}text+target_side", f"{read[1]}audio", f"{read[1]}text+target_side",
    ]  # fmt: skip
    names = load_file(folder / "merged" / "model.safetensors").keys()
    assert not [name for name in names if "router" in name or "experts" in name]
    assert len([name for name in names if ".copies." in name]) == 2 * 4 * 4  # layers, linear layers, conditions


def test_the_heads_load_too(folder):
    _, found = ImpForPreTraining.from_pretrained(folder / "merged", output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]


def test_it_is_evaluated_as_the_full_model_is(folder):
    full, merged = (evaluate(folder / name) for name in ("full", "merged"))
    # of the tasks that it serves; rounding may turn a close call of one in a hundred
    assert merged == pytest.approx({name: full[name] for name in merged}, abs=0.02)
    assert all(name.startswith("heads/") for name in full.keys() - merged.keys())
    assert {"zero_shot/image/top1", "zero_shot/audio/top1"} <= merged.keys()


def test_the_example_of_its_card_is_given_a_task(folder):
    card = (folder / "merged" / "README.md").read_text()
    assert 'model(**inputs, task="image_text")' in card.replace("'", '"') and "merged from experts" in card


REFUSED = {
    "an unknown task": (["birds"], "(?s)the model has no such task.*birds.*image_text"),
    "nothing to write": (None, "the folder of the export is not empty"),
}  # fmt: skip


@pytest.mark.parametrize("tasks, message", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused_leaves_nothing(folder, tmp_path, tasks, message):
    with pytest.raises(UserError, match=message):
        export(folder / "run", tmp_path / "out" if tasks else folder / "merged", merge_tasks=tasks)
    assert not list(tmp_path.iterdir()) and not list(folder.glob(".staging*"))
