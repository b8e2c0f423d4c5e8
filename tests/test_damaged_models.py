"""Folders of models that are damaged or hostile: every command that reads one refuses it in one message, or takes it as it is.

`scripts/try_damage.py models` tries many more.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.mutations import mutated
from helpers.tunable import digits_run, export_untrained
from imp_ds.commands.exported_model import load_model, read_run
from imp_ds.commands.tune_command import tune
from imp_ds.commands.tuning import Tuning
from imp_ds.commands.upcycle_command import upcycle_folder
from imp_ds.config import RunConfig
from imp_ds.errors import UserError
from imp_ds.families.imp.initial_weights import load_initial
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.families.imp.processor import build_extractor
from imp_ds.modalities.text.tokenizers import load_tokenizer

DEEP = b'{"a":' * 100_000
DAMAGE = {"deep": DEEP, "empty": b"", "list": b"[]", "not UTF-8": b"\xff\xfe", "cut": b"{", "null": b"null", "gone": None}
FILES = ["model.safetensors", "config.json", "run_config.json"]
FILES += ["processor_config.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture(scope="module")
def exported(digits_corpus, tmp_path_factory) -> Path:
    return export_untrained(digits_run(digits_corpus, num_experts=0), tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def commands(exported):
    """What the commands do with the folder of a model, by name. What they make goes into a folder beside it."""
    run, tokenizer = RunConfig.load(exported), load_tokenizer(str(exported))
    config = run.model.to_config(len(tokenizer), run.tasks, tokenizer)
    fresh = ImpForPreTraining(config)

    def start_from(folder):
        changed = run.model_copy(update={"train": run.train.model_copy(update={"init_from": str(folder)})})
        if (folder / "processor_config.json").is_file():
            build_extractor(changed, config, {})
        load_initial(fresh, folder, tokenizer)

    return {
        "eval": lambda folder: (read_run(folder), load_model(folder)),
        "upcycle": lambda folder: upcycle_folder(folder, folder.parent / "upcycled", num_experts=2),
        "tune": lambda folder: tune(folder, "nothing", Tuning(), folder.parent / "tuned"),
        "train.init_from": start_from,
    }


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    return shutil.copytree(exported, tmp_path / "model")


def refusals(commands, folder: Path) -> dict[str, UserError]:
    """By command; anything else that one raises fails the test."""
    found = {}
    for name, command in commands.items():
        try:
            command(folder)
        except UserError as error:
            found[name] = error
    return found


def test_nothing_but_the_unknown_evaluation_is_refused_of_a_complete_model(commands, copy):
    (error,) = refusals(commands, copy).values()
    assert "unknown evaluation" in str(error)


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_one_message(name, content, commands, copy):
    (copy / name).unlink() if content is None else (copy / name).write_bytes(content)
    found = refusals(commands, copy)
    reads = {"run_config.json": ["eval"], "model.safetensors": ["eval", "upcycle", "train.init_from"]}.get(name, ["eval"])
    if not (name == "tokenizer_config.json" and content is None):  # tokenizer.json is enough
        assert {*reads} <= found.keys(), found
    assert not (copy.parent / "upcycled").exists() or "upcycle" not in found  # whole, or not there


def change(folder: Path, name: str, **values) -> None:
    content = json.loads((folder / name).read_text()) | values
    (folder / name).write_text(json.dumps(content))


CHANGES = {
    "layers without end": ("config.json", {"num_hidden_layers": 10**18}),
    "layers without weights": ("config.json", {"num_hidden_layers": 7}),
    "a width without weights": ("config.json", {"hidden_size": 128}),
    "a width that is a text": ("config.json", {"hidden_size": "wide"}),
    "another architecture": ("config.json", {"model_type": "bert"}),
    "objectives that are none": ("config.json", {"objectives": {"image_text": 7}}),
    "an objective that is none": ("config.json", {"objectives": {"image_text": {"objectives": [{"kind": "system"}]}}}),
    "a spectrogram without end": ("processor_config.json", {"feature_extractor": {"log_mel": {"mel_bins": "x"}}}),
}


@pytest.mark.parametrize("name, values", CHANGES.values(), ids=CHANGES.keys())
def test_a_setting_that_cannot_be_is_one_message(name, values, commands, copy):
    change(copy, name, **values)
    assert {"eval"} <= refusals(commands, copy).keys()


def test_weights_that_are_missing_are_never_made_up(commands, copy):
    """transformers would fill them with random numbers, and say so in a warning at most."""
    weights = load_file(copy / "model.safetensors")
    gone = "imp.blocks.0.attention.qkv.weight"
    save_file({name: value for name, value in weights.items() if name != gone}, copy / "model.safetensors", {"format": "pt"})
    found = refusals(commands, copy)
    for command in ("eval", "upcycle", "train.init_from"):
        assert gone in str(found[command])


def test_weights_of_another_shape_are_refused(commands, copy):
    weights = load_file(copy / "model.safetensors")
    weights["imp.blocks.0.attention.qkv.weight"] = torch.zeros(3, 5)
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    assert {"eval", "upcycle", "train.init_from"} <= refusals(commands, copy).keys()


@pytest.mark.parametrize("name", FILES)
def test_bytes_that_are_changed_are_one_message_or_nothing(name, commands, copy):
    full = (copy / name).read_bytes()
    for seed in range(6):
        (copy / name).write_bytes(mutated(full, np.random.default_rng(seed)))
        found = refusals(commands, copy)
        assert "tune" in found  # for the damage, or for the evaluation that is not there
        assert all(0 < len(str(error)) < 2000 for error in found.values()), found
        assert (copy.parent / "upcycled").exists() == ("upcycle" not in found)
        shutil.rmtree(copy.parent / "upcycled", ignore_errors=True)
