"""Weights of a base by our names, and back.

Shapes: E experts, D width, F feed-forward width.
"""

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.language_models import HIDDEN, WIDTH, expert_settings, language_model
from imp_ds.errors import UserError
from imp_ds.models.uni_moe.experts import replace_feed_forwards
from imp_ds.models.uni_moe.upcycling import from_base, to_base


def sparse_of(model, **changes):
    new = type(model)(model.config)
    replace_feed_forwards(new, expert_settings(norm_topk_prob=getattr(model.config, "norm_topk_prob", True), **changes))
    return new


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sparse_folder_goes_in_and_out_unchanged(kind, dtype, tmp_path):
    """As transformers writes it, and as it holds it in memory: the same weights, and bit by bit the same file."""
    model = language_model(kind).to(dtype)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    ours = sparse_of(model).to(dtype)
    taken = from_base(stored, ours, HIDDEN)
    ours.load_state_dict(taken)
    in_memory = from_base(model.state_dict(), ours, HIDDEN)
    assert taken.keys() == in_memory.keys() and all(torch.equal(taken[name], in_memory[name]) for name in taken)
    save_file(to_base(ours.state_dict(), kind), tmp_path / "ours.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_copies_and_slices_by_hand():
    """Expert 3 of 4 slices of width 6: rows 18 to 24 of gate and up, columns 18 to 24 of down, which is 4 times as large."""
    model = language_model("llama")
    base, layer = model.state_dict(), "model.layers.1.mlp"
    copies = from_base(base, sparse_of(model), HIDDEN)
    slices = from_base(base, sparse_of(model, moe_intermediate_size=6), HIDDEN)
    for name, matrix in (("w1", "gate_proj"), ("w3", "up_proj")):
        dense_FD = base[f"{layer}.{matrix}.weight"]
        assert torch.equal(copies[f"{layer}.moe.experts.{name}"], dense_FD.T.expand(4, WIDTH, HIDDEN))
        assert torch.equal(slices[f"{layer}.moe.experts.{name}"][3], dense_FD[18:24].T)
    down_DF = base[f"{layer}.down_proj.weight"]
    assert torch.equal(copies[f"{layer}.moe.experts.w2"], down_DF.T.expand(4, HIDDEN, WIDTH))
    assert torch.equal(slices[f"{layer}.moe.experts.w2"][3], 4 * down_DF[:, 18:24].T)
    assert f"{layer}.moe.router.weight" not in copies and f"{layer}.gate_proj.weight" not in copies
    assert copies["lm_head.weight"] is base["lm_head.weight"]


def test_noise_is_of_seed_layer_and_expert_alone():
    """A rank that holds experts 2 and 3 draws what it would draw with all four; its size is relative to the matrix."""
    model = language_model("llama")
    whole, part = sparse_of(model), sparse_of(model)
    for layer in part.model.layers:
        layer.mlp.moe.experts = layer.mlp.moe.experts.slice(2, 2)
    all_of_them = from_base(model.state_dict(), whole, HIDDEN, noise=0.1, seed=3)
    own = from_base(model.state_dict(), part, HIDDEN, noise=0.1, seed=3)
    other = from_base(model.state_dict(), whole, HIDDEN, noise=0.1, seed=4)
    for number in (0, 1):
        for name in ("w1", "w2", "w3"):
            key = f"model.layers.{number}.mlp.moe.experts.{name}"
            assert torch.equal(own[key], all_of_them[key][2:]) and not torch.equal(other[key], all_of_them[key])
            plain = from_base(model.state_dict(), whole, HIDDEN)[key]
            noise = all_of_them[key] - plain
            assert 0.08 < noise.std() / plain.std() < 0.12 and not torch.equal(noise[0], noise[1])


@pytest.mark.parametrize("width, experts", [(7, 4), (8, 4)])  # no divisor of 24; 3 slices, and 4 experts
def test_experts_that_are_no_slices_are_refused(width, experts):
    model = language_model("llama")
    with pytest.raises(UserError, match=f"(?s){experts} experts of width {width}, a dense width of 24"):
        from_base(model.state_dict(), sparse_of(model, moe_intermediate_size=width, num_experts=experts), HIDDEN)


def test_unknown_names_are_refused():
    model = language_model("llama")
    renamed = {name.replace("mlp.down_proj", "mlp.out"): tensor for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=r"(?s)unknown kind.*model.layers.0.*mlp.down_proj.weight.*experts.N"):
        from_base(renamed, sparse_of(model), HIDDEN)


def test_maps_before_the_gate_have_no_place_in_a_base():
    model = sparse_of(language_model("mixtral"), modality_maps=True)
    for layer in model.model.layers:
        layer.mlp.maps.initialize_parameters()
    assert not any("maps" in name for name in to_base(model.state_dict(), "mixtral"))
    model.model.layers[1].mlp.maps.weight.data[2, 0, 1] = 1e-3
    with pytest.raises(UserError, match="model.layers.1.mlp.maps"):
        to_base(model.state_dict(), "mixtral")
