"""Adapters between our layers and PEFT's on transformers' own models: the same logits, both ways.

Shapes: B batch, L tokens of an example.
"""

import copy
import json
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from helpers.language_models import HIDDEN, VOCAB, language_model
from helpers.lora_models import EXPERTS, with_lora
from helpers.lora_models import LORA as EVERY
from imp_ds.errors import UserError
from imp_ds.families.uni_moe.adapters.files import CONFIG, WEIGHTS, Adapter, save_adapter
from imp_ds.models.uni_moe.lora import CHANGES, remove_lora
from imp_ds.models.uni_moe.stock_model import save_stock_model
from imp_ds.models.uni_moe.upcycling import from_base

IDS_BL = torch.randint(3, VOCAB - 3, (3, 9), generator=torch.Generator().manual_seed(1))
LINEAR = ["q_proj", "v_proj"]
LORA = EVERY | dict(target_modules=LINEAR)
CASES = {
    "a dense model": ("llama", {}, dict(target_modules="all-linear", target_parameters=[])),
    "copies of a dense model": ("llama", dict(num_experts=4), {}),
    "experts in one layer": ("qwen3", dict(num_experts=4, moe_layers=[1]), {}),
    "mixtral": ("mixtral", {}, {}),
    "qwen3_moe, experts alone": ("qwen3_moe", {}, dict(target_modules=[])),
    "gate alone, and a layer of its own": (
        "mixtral", {}, dict(target_parameters=["experts.w1", "layers.1.mlp.experts.down_proj"])
    ),
    "ranks and alphas of their own": ("mixtral", {}, dict(
        rank_pattern={"experts.w3": 5, "0.self_attn.q_proj": 2}, alpha_pattern={"experts.gate_up_proj": 3.0, "v_proj": 1.5},
    )),
}  # fmt: skip


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS_BL).logits


def loaded(folder, language: str, **changes):
    """A fresh model of ours with LoRA as the adapter in a folder has it, and its weights."""
    model = with_lora(language, Adapter(folder, 4).settings().model_dump(), **changes)
    tensors = Adapter(folder, 4).of(model.language_model)
    model.language_model.load_state_dict(tensors, strict=False)
    return model


def theirs_in_ours(stock, model) -> None:
    """The weights of a model of transformers, in ours."""
    left = model.language_model.load_state_dict(from_base(stock.state_dict(), model.language_model, HIDDEN), strict=False)
    assert not left.unexpected_keys and all(CHANGES in name for name in left.missing_keys)


@pytest.mark.parametrize("name", CASES)
def test_peft_loads_ours(name, tmp_path):
    """On the exported base, and so do we."""
    language, changes, lora = CASES[name]
    model = with_lora(language, LORA | lora, **changes)
    expected = logits(model.language_model)
    base = copy.deepcopy(model)
    remove_lora(base)
    save_stock_model(base.language_model, tmp_path / "base")
    save_adapter(model.language_model, tmp_path, str(tmp_path / "base"))
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert (logits(stock) - expected).abs().max() > 0.1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*adapter keys.*")  # that are missing
        found = PeftModel.from_pretrained(stock, tmp_path)
    torch.testing.assert_close(logits(found), expected, rtol=1e-5, atol=1e-5)
    again = loaded(tmp_path, language, **changes)
    theirs = {name: p for name, p in model.language_model.named_parameters() if CHANGES in name}
    own = {name: p for name, p in again.language_model.named_parameters() if CHANGES in name}
    if "alone" not in name and "own" not in name:  # else gate and up have one rank
        assert all(torch.equal(own[name], value) for name, value in theirs.items())
    again.language_model.load_state_dict(base.language_model.state_dict(), strict=False)
    torch.testing.assert_close(logits(again.language_model), expected, rtol=1e-5, atol=1e-5)


def test_what_is_changed_is_named_shortly(tmp_path):
    model = with_lora("mixtral", LORA)
    save_adapter(model.language_model, tmp_path, "base")
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["target_modules"] == ["self_attn.q_proj", "self_attn.v_proj"]
    assert config["target_parameters"] == ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    assert config["rank_pattern"] == {"mlp.experts.gate_up_proj": 8}
    assert config["alpha_pattern"] == {"mlp.experts.gate_up_proj": 16}
    tensors = load_file(tmp_path / WEIGHTS)
    shapes = {name.removeprefix("base_model.model.model.layers.0."): list(t.shape) for name, t in tensors.items()}
    # 4 experts of width 16, feed-forward 24; r = 4, and 8 of gate and up
    assert shapes["mlp.experts.base_layer.lora_A.weight"] == [4 * 8, 16]
    assert shapes["mlp.experts.base_layer.lora_B.weight"] == [2 * 24, 4 * 8]
    assert shapes["mlp.experts.lora_A.weight"] == [4 * 4, 24] and shapes["mlp.experts.lora_B.weight"] == [16, 4 * 4]


@pytest.mark.parametrize("language", ["llama", "mixtral", "qwen3_moe"])
@pytest.mark.parametrize("rslora", [False, True])
def test_we_load_what_peft_has_made(language, rslora, tmp_path):
    """Its changes of gate and up share their A."""
    stock, experts = language_model(language), [] if language == "llama" else EXPERTS
    patterns = dict(rank_pattern={"1.self_attn.q_proj": 3}, alpha_pattern={"v_proj": 5})
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=LINEAR, target_parameters=experts, use_rslora=rslora, **patterns)
    model = with_lora(language, None)
    theirs_in_ours(stock, model)
    peft = get_peft_model(stock, settings)
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    peft.save_pretrained(tmp_path)
    own = loaded(tmp_path, language)
    own.language_model.load_state_dict(model.language_model.state_dict(), strict=False)
    torch.testing.assert_close(logits(own.language_model), logits(peft), rtol=1e-5, atol=1e-5)


def damage(folder, change) -> None:
    config, tensors = json.loads((folder / CONFIG).read_text()), load_file(folder / WEIGHTS)
    change(config, tensors)
    (folder / CONFIG).write_text(json.dumps(config))
    save_file(tensors, folder / WEIGHTS)


def rename(old: str, new: str):
    def change(config, tensors):
        for name in list(tensors):
            tensors[name.replace(old, new)] = tensors.pop(name)

    return change


def cut(name: str, index: tuple):
    return lambda config, tensors: tensors.update({n: t[index].contiguous() for n, t in tensors.items() if name in n})


@pytest.mark.parametrize(
    "change, message",
    [
        (rename("v_proj", "w_proj"), "no such linear layer"), (rename("experts", "expert"), "no such linear layer"),
        (rename("model.layers", "vision.layers"), "no layer of a language model"),
        (lambda config, tensors: config.update(peft_type="LOHA"), "another kind"),
        (lambda config, tensors: config.update(use_dora=True), "more than LoRA"),
        (lambda config, tensors: config.update(lora_alpha="much"), "lora_alpha"),
        (lambda config, tensors: config.update(lora_alpha=0), "lora_alpha"),
        (lambda config, tensors: config.update(alpha_pattern={"(": 1.0}), "regular expression"),
        (lambda config, tensors: config.update(alpha_pattern=[1]), "alpha_pattern"),
        (lambda config, tensors: config.update(target_parameters=3), "target_parameters"),
        (cut("q_proj.lora_B", (slice(None), slice(1, None))), "none of a product"),
        (cut("q_proj.lora_A", (0,)), "none of a product"), (cut("q_proj.lora", (slice(0), slice(0))), "none of a product"),
        (lambda config, tensors: tensors.popitem(), "one of two matrices"),
        (lambda config, tensors: tensors.update(x=torch.zeros(1)), "not LoRA"),
        (cut("q_proj.lora_A", (slice(None), slice(1, None))), "another model"),
        (lambda config, tensors: [cut("experts.lora_A", (slice(1, None),))(config, tensors),
                                  cut("experts.lora_B", (slice(None), slice(1, None)))(config, tensors)], "number of experts"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(change, message, tmp_path):
    model = with_lora("mixtral", LORA)
    save_adapter(model.language_model, tmp_path, "base")
    damage(tmp_path, change)
    with pytest.raises(UserError, match=message):
        loaded(tmp_path, "mixtral")


def test_folders_without_an_adapter_are_refused(tmp_path):
    with pytest.raises(UserError, match="no adapter"):
        Adapter(tmp_path, 0)
    (tmp_path / CONFIG).write_text("{}")
    (tmp_path / WEIGHTS).write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot be read"):
        Adapter(tmp_path, 0)


def test_a_model_without_lora_has_no_adapter(tmp_path):
    with pytest.raises(UserError, match="no LoRA"):
        save_adapter(language_model("llama"), tmp_path, "base")
