"""Experts from named slots, and connectors that start from a model: what comes from where, by hash; refusals that name a slot."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.language_models import WIDTH, language_model
from helpers.uni_moe_models import CLIP as VISION
from helpers.upcycled_run import config_of, make_run, save_base
from imp_ds.errors import UserError
from imp_ds.families import family_of
from imp_ds.families.arrival import Arrival
from imp_ds.families.uni_moe.expert_slots import slot_sources
from imp_ds.families.uni_moe.model_card import card
from imp_ds.families.uni_moe.settings import ConnectorSettings
from imp_ds.models.uni_moe import UniMoeConfig, UniMoeForConditionalGeneration

MATRICES = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """A base, and the models of three slots: one of transformers, one in shards, and an exported one of ours."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "one")):
        language_model("llama", seed).save_pretrained(root / name)
    language_model("llama", 2).save_pretrained(root / "sharded", max_shard_size="10KB")
    torch.manual_seed(3)
    model = UniMoeForConditionalGeneration(UniMoeConfig(language_model("llama").config, vision_config=VISION, trained_steps=70))
    model.save_pretrained(root / "exported")
    return {path.name: str(path) for path in root.iterdir()}


def slots_of(folders, **changes) -> dict[str, str]:
    return {"image": folders["exported"], "base": folders["base"], "speech": folders["sharded"], "text": folders["one"]} | changes


def stored(folder: str) -> dict[str, torch.Tensor]:
    """The tensors of a language model's folder by its own names."""
    found = {}
    for path in Path(folder).glob("*.safetensors"):
        found |= {name.removeprefix("language_model."): tensor for name, tensor in load_file(path).items()}
    return found


def filled(run):
    assembly = family_of(run).assembly(run, config_of(run))
    said = assembly.finish(Arrival(assembly.dtype_of(torch.float32)), read=True)
    return assembly.model.uni_moe.language_model.state_dict(), said


@pytest.mark.parametrize("ep_size", [1, 2])
def test_an_expert_is_the_feed_forward_of_its_slot_by_hash(folders, ep_size, monkeypatch):
    slots = slots_of(folders)
    run = make_run(folders["base"], num_experts=0, expert_noise=0.0, experts=slots, moe_layers=[1], ep_size=ep_size)
    assert config_of(run).num_experts == 4
    for rank in range(ep_size):
        monkeypatch.setattr("imp_ds.families.build.rank", lambda rank=rank: rank)
        found, said = filled(run)
        held = 4 // ep_size
        for place in range(held):
            own = stored(list(slots.values())[rank * held + place])
            for ours, theirs in MATRICES.items():
                weight = found[f"model.layers.1.mlp.moe.experts.{ours}"][place].t()
                assert digest(weight) == digest(own[f"model.layers.1.mlp.{theirs}.weight"]), (place, ours)
        base = stored(folders["base"])
        others = {name for name in found if ".moe." not in name}
        assert others == {name for name in base if not name.startswith("model.layers.1.mlp.")}
        assert all(torch.equal(found[name], base[name]) for name in others)
    assert said[1:] == [f"expert {number} ({slot}): {folder}" for number, (slot, folder) in enumerate(slots.items())]


def test_a_source_is_recorded_and_one_that_was_changed_is_named(folders, tmp_path):
    shutil.copytree(folders["one"], tmp_path / "one")
    slots = slots_of(folders, text=str(tmp_path / "one"))
    found = slot_sources(slots)
    assert list(found) == list(slots) and [found[slot]["source"] for slot in slots] == list(slots.values())
    assert [found[slot]["step"] for slot in slots] == [70, None, None, None]
    file = tmp_path / "one" / "model.safetensors"
    assert found["text"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    shards = sorted(Path(folders["sharded"]).glob("*.safetensors"))  # as `sha256sum *.safetensors | sha256sum` has it
    lines = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in shards)
    assert len(shards) > 1 and found["speech"]["sha256"] == hashlib.sha256(lines.encode()).hexdigest()
    moved, saved = slots | {"text": folders["one"]}, json.loads(json.dumps(found, sort_keys=True))  # as a checkpoint has it
    assert slot_sources(moved, saved)["text"]["source"] == folders["one"]  # the same weights elsewhere
    tensors = load_file(file)
    tensors["model.norm.weight"] += 1
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UserError, match="model.experts.text: the model that the run's experts were made from was changed"):
        slot_sources(slots, found)
    (tmp_path / "one" / "config.json").unlink()
    with pytest.raises(UserError, match="model.experts.text is not there"):
        slot_sources(slots, found)
    with pytest.raises(UserError, match="the slots are not those that the run began with"):
        slot_sources({name: slots[name] for name in ("base", "image", "speech", "text")}, found)


def test_the_configuration_keeps_them_and_the_card_says_them(folders, tmp_path):
    run = make_run(folders["base"], experts=slots_of(folders), expert_noise=0.0)
    config = config_of(run)
    config.expert_sources = family_of(run).origins(run, None)["expert_sources"]
    config.save_pretrained(tmp_path)
    read = UniMoeConfig.from_pretrained(tmp_path)
    assert read.expert_sources == config.expert_sources
    assert {slot: of["expert"] for slot, of in read.expert_sources.items()} == {"image": 0, "base": 1, "speech": 2, "text": 3}
    about = card(run, read, [0, 1]).about
    assert f"0 (`image`) as that of `{folders['exported']}` after 70 steps, 1 (`base`) as that of `{folders['base']}`," in about


def refusal(run) -> str:
    with pytest.raises(UserError) as error:
        family_of(run).assembly(run, config_of(run))
    return str(error.value)


@pytest.mark.parametrize(
    "settings, parts",
    [
        (dict(num_experts=3), ["model.num_experts is not the number of slots", "3, and image, base, speech, text", "4, or 0"]),
        (dict(expert_intermediate_size=12), ["whole feed-forwards", "expert_intermediate_size = 12", "24, or null"]),
        (dict(language_model={"model_type": "llama", "hidden_size": WIDTH}), ["a language model that was trained"]),
    ],
)
def test_settings_that_contradict_the_slots_are_refused(folders, settings, parts):
    run = make_run(folders["base"], **dict(expert_noise=0.0, experts=slots_of(folders)) | settings)
    if isinstance(run.model.language_model, dict):
        run.model.language_model |= {"intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = refusal(run)
    assert [part for part in parts if part not in text] == [], text


@pytest.mark.parametrize(
    "kind, changes, parts",
    [
        ("llama", dict(hidden_size=32), ["model.experts.text: its model has another hidden_size", ": 32", "allowed: 16"]),
        ("llama", dict(intermediate_size=48), ["model.experts.text", "intermediate_size", ": 48", "allowed: 24"]),
        ("llama", dict(num_hidden_layers=3), ["model.experts.text", "num_hidden_layers", ": 3", "allowed: 2"]),
        ("mixtral", {}, ["model.experts.text: its model has experts of its own", "a dense language model"]),
        (None, {}, ["model.experts.text is not there", "--set model.experts.text=FOLDER"]),
    ],
)  # fmt: skip
def test_a_model_that_does_not_fit_its_slot_is_refused(folders, kind, changes, parts, tmp_path):
    if kind is not None:
        save_base(tmp_path / "other", kind, **changes)
    text = refusal(make_run(folders["base"], expert_noise=0.0, experts=slots_of(folders, text=str(tmp_path / "other"))))
    assert [part for part in parts if part not in text] == [], text


def test_a_base_with_experts_of_its_own_has_no_slots(folders, tmp_path):
    run = make_run(save_base(tmp_path, "mixtral"), expert_noise=0.0, experts=slots_of(folders))
    with pytest.raises(UserError, match="model.experts beside a language model that has experts"):
        config_of(run)


def with_connector(folders, start_from: str, **settings):
    connector = ConnectorSettings(start_from=start_from, **settings)
    return make_run(folders["base"], num_experts=0, expert_noise=0.0, image_tower=VISION, image_connector=connector)


def test_a_connector_starts_from_an_exported_model(folders):
    run = with_connector(folders, folders["exported"])
    model = family_of(run).build(config_of(run), seed=0, ep_size=1)
    said, sources = family_of(run).load_parts(run, model)
    whole = load_file(Path(folders["exported"]) / "model.safetensors")
    names = [name for name, _ in model.named_parameters() if "connectors.image" in name]
    assert said == [f"connector of image: {folders['exported']}"] and sorted(sources) == sorted(names) and len(names) == 4
    for name in names:
        assert torch.equal(model.get_parameter(name), whole[name.removeprefix("uni_moe.")])
        assert sources[name] == (Path(folders["exported"]) / "model.safetensors", name.removeprefix("uni_moe."))


@pytest.mark.parametrize(
    "start_from, settings, parts",
    [
        ("exported", dict(kind="linear"), ["model.image_connector.start_from", "of another kind or width", "projection.weight"]),
        ("one", {}, ["model.image_connector.start_from: the model there has no connector of image"]),
        ("nowhere", {}, ["model.image_connector.start_from is not there", "nowhere"]),
    ],
)
def test_a_connector_that_does_not_fit_is_refused(folders, start_from, settings, parts):
    run = with_connector(folders, folders.get(start_from, start_from), **settings)
    model = family_of(run).build(config_of(run), seed=0, ep_size=1)
    with pytest.raises(UserError) as error:
        family_of(run).load_parts(run, model)
    assert [part for part in parts if part not in str(error.value)] == [], str(error.value)


def test_one_model_is_started_from(folders):
    for run in (with_connector(folders, folders["exported"]), make_run(folders["base"], experts=slots_of(folders))):
        run.train.init_from = folders["exported"]
        with pytest.raises(UserError, match="two models that the run would start from"):
            family_of(run).check(run, config_of(run), 1)
