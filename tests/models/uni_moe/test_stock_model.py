"""Language models with our experts, written as transformers' own and loaded by it."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from helpers.language_models import HIDDEN, VOCAB, expert_settings, language_model
from imp_ds.errors import UserError
from imp_ds.models.initialization import initialize_module
from imp_ds.models.uni_moe.experts import expert_feed_forwards, replace_feed_forwards
from imp_ds.models.uni_moe.stock_model import save_stock_model
from imp_ds.models.uni_moe.upcycling import from_base

IDS = torch.randint(0, VOCAB, (2, 7), generator=torch.Generator().manual_seed(1))
CASES = {
    "llama": ({}, {}), "llama, tied": (dict(tie_word_embeddings=True), {}), "mistral": (dict(sliding_window=3), {}),
    "qwen3": ({}, dict(moe_layers=[1], moe_intermediate_size=HIDDEN // 2)), "mixtral": ({}, {}),
    "qwen3_moe": (dict(mlp_only_layers=[0]), dict(norm_topk_prob=False)),
}  # fmt: skip
CLASSES = {"llama": "Mixtral", "mistral": "Mixtral", "mixtral": "Mixtral", "qwen3": "Qwen3Moe", "qwen3_moe": "Qwen3Moe"}


def with_experts(kind: str, model: dict, experts: dict):
    """Experts that differ, made of copies with noise, and drawn routers."""
    base = language_model(kind, **model)
    new = language_model(kind, **model)
    replace_feed_forwards(new, expert_settings(**experts))
    for mixture in expert_feed_forwards(new):
        initialize_module(mixture.moe.router, std=1.0)
    new.load_state_dict(from_base(base.state_dict(), new, HIDDEN, noise=0.3), strict=False)
    return new


@pytest.mark.parametrize("name", CASES)
def test_transformers_loads_it_and_answers_the_same(name, tmp_path):
    kind = name.partition(",")[0]
    model = with_experts(kind, *CASES[name])
    save_stock_model(model, tmp_path, max_shard_size="20KB")
    found, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(found).__name__ == f"{CLASSES[kind]}ForCausalLM" and not any(info.values()), info
    with torch.no_grad():
        torch.testing.assert_close(found.eval()(input_ids=IDS).logits, model(input_ids=IDS).logits, rtol=1e-5, atol=1e-5)


def test_a_sparse_model_is_written_as_it_was(tmp_path):
    for kind in ("mixtral", "qwen3_moe"):
        base = language_model(kind)
        base.save_pretrained(tmp_path / "theirs")
        new = language_model(kind, seed=1)
        replace_feed_forwards(new, expert_settings(norm_topk_prob=kind == "mixtral"))
        new.load_state_dict(from_base(base.state_dict(), new, HIDDEN))
        save_stock_model(new, tmp_path / "ours")
        ours, theirs = (load_file(tmp_path / one / "model.safetensors") for one in ("ours", "theirs"))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_dense_model_is_written_as_it_is(tmp_path):
    model = language_model("llama")
    save_stock_model(model, tmp_path)
    found = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind, model, experts, said", [
    ("llama", {}, dict(moe_layers=[0]), r"dense feed-forwards in layers \[1\]"),
    ("llama", {}, dict(norm_topk_prob=False), "norm_topk_prob = False"),
    ("llama", dict(attention_bias=True), {}, "biases in attention"),
])  # fmt: skip
def test_what_no_class_of_transformers_is_is_refused(kind, model, experts, said, tmp_path):
    with pytest.raises(UserError, match=f"(?s)no class of transformers.*{said}"):
        save_stock_model(with_experts(kind, model, experts), tmp_path)
