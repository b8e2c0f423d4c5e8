"""DeepSpeed configurations: every shipped file resolves and is accepted by DeepSpeed; disagreements and damage are refused."""

import json

import pytest

from imp_ds.errors import UserError
from imp_ds.recipes import get_recipe
from imp_ds.train.engine import ds_config

SHIPPED = sorted(path.name for path in ds_config.FOLDER.glob("*.json"))


@pytest.fixture
def run():
    return get_recipe("digits")


def write(tmp_path, text: str):
    path = tmp_path / "ds.json"
    path.write_text(text)
    return path


def test_the_shipped_files_are_those_that_are_promised():
    promised = ["zero1", "zero2", "zero2_offload", "zero3"]
    assert {f"cpu_{n}.json" for n in ["zero0", *promised, "zero2_ep2"]} <= set(SHIPPED)
    assert {f"gpu_{n}.json" for n in [*promised, "zero2_ep8"]} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_resolve_for_deepspeed(name, run):
    ds = ds_config.load(ds_config.FOLDER / name)
    ep_size = ds.get("imp_ds", {}).get("ep_size", 1)
    changes = [f"train.ep_size={ep_size}", "model.num_experts=8"] + (["optimizer.clip=0"] if "zero0" in name else [])
    found = ds_config.resolve(ds, run.override(changes), 8)
    assert "imp_ds" not in found and '"auto"' not in json.dumps(found)
    assert found["train_batch_size"] == found["train_micro_batch_size_per_gpu"] * 8 == 32
    assert found["gradient_accumulation_steps"] == 1
    assert found["gradient_clipping"] == (0 if "zero0" in name else 1.0)
    assert found["optimizer"]["params"]["betas"] == [0.9, 0.999] and found["optimizer"]["params"]["eps"] == 1e-7
    # DeepSpeed's own would be compiled at the first step; beside the CPU's memory on a GPU machine there is no other
    assert found["optimizer"]["params"].get("torch_adam", False) == (name != "gpu_zero2_offload.json")
    assert found["steps_per_print"] >= 10**9 and found["zero_allow_untested_optimizer"] is True
    assert ("bf16" in found) == name.startswith("gpu")
    stage = int(name.split("zero")[1][0])
    assert found["zero_optimization"]["stage"] == stage
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    assert DeepSpeedZeroConfig(**found["zero_optimization"]).stage == stage  # every key of ours is one of its keys


def test_resolve_leaves_its_argument_alone_and_passes_unknown_sections_through(run):
    ds = ds_config.load(ds_config.FOLDER / "cpu_zero2.json")
    ds["tensorboard"] = {"enabled": True, "output_path": "x"}
    before = json.dumps(ds)
    assert ds_config.resolve(ds, run, 2)["tensorboard"] == {"enabled": True, "output_path": "x"}
    assert json.dumps(ds) == before


@pytest.mark.parametrize(
    "path, value, parts",
    [
        ("train_batch_size", 64, ["train_batch_size", "64 in the file", "32 in the run"]),
        ("train_micro_batch_size_per_gpu", 3, ["3 in the file", "16 in the run"]),
        ("gradient_clipping", 0.5, ["gradient_clipping", "0.5 in the file", "1.0 in the run", "optimizer.clip"]),
        ("gradient_accumulation_steps", 2, ["2 in the file", "1 in the run", "fixed"]),
        ("optimizer.type", "Adam", ["Adam in the file", "AdamW in the run"]),
        ("optimizer.params.lr", 0.5, ["0.5 in the file", "0.0012 in the run", "optimizer.peak_rate"]),
        ("optimizer.params.betas", [0.9, 0.95], ["[0.9, 0.95] in the file", "[0.9, 0.999] in the run"]),
        ("optimizer.params.weight_decay", 0.1, ["0.1 in the file", "0.0001 in the run"]),
        ("zero_optimization.reduce_bucket_size", "auto", ["auto", "zero_optimization.reduce_bucket_size"]),
        ("imp_ds", {"ep_size": 2}, ["2 in the file", "1 in the run", "--set train.ep_size=2"]),
        ("imp_ds", {"ep": 2}, ["imp_ds", "ep_size"]),
        ("zero_optimization", 2, ["zero_optimization", "no object"]),
        ("zero_optimization.stage", 0, ["ZeRO 0 with experts"]),
    ],
)
def test_disagreements_name_both_values(run, path, value, parts):
    ds = ds_config.load(ds_config.FOLDER / "cpu_zero2.json")
    *sections, key = path.split(".")
    place = ds
    for section in sections:
        place = place[section]
    place[key] = value
    with pytest.raises(UserError) as caught:
        ds_config.resolve(ds, run, 2)
    for part in [path if path.startswith("optimizer.") else "", *parts]:
        assert part in str(caught.value)


def test_a_literal_that_agrees_is_fine(run):
    ds = {"optimizer": {"type": "AdamW", "params": {"lr": 1.2e-3}}, "gradient_clipping": 1.0, "zero_optimization": {"stage": 1}}
    assert ds_config.resolve(ds, run, 2)["gradient_clipping"] == 1.0


def test_damaged_and_missing_files(tmp_path):
    with pytest.raises(UserError, match="not JSON(.|\n)*line 1"):
        ds_config.load(write(tmp_path, '{"zero_optimization": {'))
    with pytest.raises(UserError, match="not an object"):
        ds_config.load(write(tmp_path, "[1]"))
    with pytest.raises(UserError, match="twice(.|\n)*bf16"):
        ds_config.load(write(tmp_path, '{"bf16": {}, "bf16": {}}'))
    with pytest.raises(UserError, match="cannot be read(.|\n)*cpu_zero2.json"):
        ds_config.load(tmp_path / "nothing.json")


def test_default_paths():
    assert ds_config.default_path(1, "cpu").name == "cpu_zero2.json"
    assert ds_config.default_path(2, "cpu").name == "cpu_zero2_ep2.json"
    assert ds_config.default_path(8, "cuda").name == "gpu_zero2_ep8.json"
    assert ds_config.default_path(4, "cuda").name == "gpu_zero2.json"
