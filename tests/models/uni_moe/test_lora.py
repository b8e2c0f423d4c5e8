"""LoRA in language models against the sum of their weights, and against PEFT's own layers on the same model.

Shapes: B batch, L tokens of an example.
"""

from types import SimpleNamespace

import pytest
import torch

from helpers.language_models import VOCAB
from helpers.lora_models import LORA, draw_changes, with_lora
from helpers.uni_moe_models import uni_moe, uni_moe_config
from imp_ds.errors import UserError
from imp_ds.families.build import build_module
from imp_ds.families.uni_moe.family import UniMoeFamily
from imp_ds.families.uni_moe.train_module import UniMoeForTraining
from imp_ds.models.uni_moe import UniMoeForConditionalGeneration
from imp_ds.models.uni_moe.experts import expert_feed_forwards
from imp_ds.models.uni_moe.lora import CHANGES, LoraLinear, changed_layers, merge_lora
from imp_ds.randomness import sample_keys

IDS_BL = torch.randint(3, VOCAB - 3, (3, 9), generator=torch.Generator().manual_seed(1))


def logits(model, **inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS_BL, **inputs).logits


def names_of(model) -> set[str]:
    return {name.removeprefix("language_model.model.") for name, _ in model.named_parameters() if CHANGES in name}


def test_names_and_shapes():
    """Width 16, feed-forward 24, 4 experts, 2 heads of 8 and one of keys and values."""
    model = with_lora(num_experts=4, moe_layers=[1])
    shapes = {name: tuple(p.shape) for name, p in model.language_model.model.named_parameters() if CHANGES in name}
    assert shapes["layers.0.mlp.gate_proj.lora.A"] == (4, 16) and shapes["layers.0.mlp.gate_proj.lora.B"] == (24, 4)
    assert shapes["layers.1.self_attn.k_proj.lora.A"] == (4, 16) and shapes["layers.1.self_attn.k_proj.lora.B"] == (8, 4)
    own = "layers.1.mlp.moe.experts.lora"
    assert {name: shape for name, shape in shapes.items() if name.startswith(own)} == {
        f"{own}.w1.A": (4, 16, 4), f"{own}.w1.B": (4, 4, 24), f"{own}.w3.A": (4, 16, 4), f"{own}.w3.B": (4, 4, 24),
        f"{own}.w2.A": (4, 24, 4), f"{own}.w2.B": (4, 4, 16),
    }  # fmt: skip
    # 4 linear layers of attention in each layer, 3 of a feed-forward in the dense one, 3 stacks in the other
    assert len(shapes) == 2 * (4 + 4 + 3 + 3)


@pytest.mark.parametrize(
    "lora, expected",
    [
        (dict(target_modules=["q_proj"], target_parameters=[]), {"layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj"}),
        (dict(target_modules=["1.self_attn.q_proj"], target_parameters=[]), {"layers.1.self_attn.q_proj"}),
        (dict(target_modules=r".*\.0\.mlp\.(up|down)_proj", target_parameters=[]),
         {"layers.0.mlp.up_proj", "layers.0.mlp.down_proj"}),
        (dict(target_modules=[], target_parameters=["experts.w2"]), {"layers.1.mlp.moe.experts.lora.w2"}),
        (dict(target_modules=[], target_parameters=["layers.1.mlp.experts.gate_up_proj"]),
         {"layers.1.mlp.moe.experts.lora.w1", "layers.1.mlp.moe.experts.lora.w3"}),
    ],
)  # fmt: skip
def test_targets(lora, expected):
    model = with_lora(num_experts=4, moe_layers=[1], lora=LORA | lora)
    assert {name.rpartition(".")[0].removesuffix(".lora") for name in names_of(model)} == expected


@pytest.mark.parametrize(
    "lora, message",
    [
        (dict(target_modules=["q_prj"]), "did you mean q_proj"), (dict(target_modules=["lm_head"]), "no such linear layer"),
        (dict(target_parameters=["experts.up_proj"]), "no such experts"),
        (dict(target_modules=["router"]), "no such linear layer"), (dict(target_modules="("), "regular expression"),
        (dict(rank_pattern={"q_proj": 0}), "rank_pattern"), (dict(alpha_pattern={"[": 2.0}), "regular expression"),
        (dict(target_modules=[], target_parameters=[]), "changes nothing"), (dict(r=0), "greater than or equal to 1"),
        (dict(rank=3), "rank"),
    ],
)  # fmt: skip
def test_what_means_nothing_is_refused(lora, message):
    with pytest.raises(UserError, match=message):
        with_lora(num_experts=4, moe_layers=[1], lora=LORA | lora)


def test_experts_of_a_dense_model_are_refused():
    with pytest.raises(UserError, match="it has no experts"):
        with_lora()


@pytest.mark.parametrize("language", ["llama", "qwen3_moe", "mixtral"])
def test_it_changes_nothing_at_first_and_is_merged_without_change(language):
    """The sum of weights computes what rows through A and B do."""
    changes = dict(num_experts=4, moe_layers=[1]) if language == "llama" else {}
    plain = uni_moe(language, **changes)
    model = with_lora(language, drawn=False, **changes)
    missing = model.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing and all(CHANGES in name for name in missing)
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-5, atol=1e-5)
    draw_changes(model)
    changed = logits(model)
    assert (changed - logits(plain)).abs().max() > 0.1
    merge_lora(model)
    assert model.config.lora is None and model.state_dict().keys() == plain.state_dict().keys()
    assert not any(isinstance(module, LoraLinear) for module in model.modules())
    torch.testing.assert_close(logits(model), changed, rtol=1e-5, atol=1e-5)


def test_weights_are_summed_in_float32():
    """In bfloat16 the sum is that of float32, rounded once: of 1 and a change of 2^-8 + 2^-9, half of 2^-7 and more, 1 + 2^-7."""
    lora = dict(r=2, lora_alpha=2, target_modules=["q_proj"], target_parameters=[])
    model = with_lora(drawn=False, lora=LORA | lora).to(torch.bfloat16)
    layer = next(layer for _, layer in changed_layers(model))
    layer.weight.data.fill_(1.0)
    layer.lora.A.data.fill_(1.0)
    layer.lora.B.data.copy_(torch.tensor([2**-8, 2**-9]).expand_as(layer.lora.B))
    merge_lora(model)
    assert (layer.weight == 1 + 2**-7).all()


def test_initial_matrices_hang_on_seed_name_and_expert_alone():
    """The same with more layers of experts around them, and of a rank of two, which holds experts 2 and 3."""
    from imp_ds.parallel.expert_parallel import spread_experts

    config = uni_moe_config(num_experts=4, moe_layers=[1], lora=LORA)
    model = build_module(UniMoeForTraining, config, 3, 1)
    values = dict(model.named_parameters())
    half = build_module(UniMoeForTraining, config, 3, 1)
    other = build_module(UniMoeForTraining, uni_moe_config(num_experts=4, lora=LORA | {"target_modules": ["o_proj"]}), 3, 1)
    spread_experts(half, 2, 1)
    for name, value in half.named_parameters():
        if "experts.lora" in name:
            assert torch.equal(value, values[name][2:]) and value.group_name == "ep_size_2" and not value.allreduce
    own = "uni_moe.language_model.model.layers.1.mlp.moe.experts.lora.w2.A"
    assert torch.equal(other.get_parameter(own), values[own])
    for name, value in values.items():
        if CHANGES in name:
            fan_in = value.shape[1]
            assert not value.any() if name.endswith("B") else 0.7 < value.abs().max() * fan_in**0.5 <= 1.0, name
            assert name.endswith("B") or value.dim() == 2 or len(value[:, 0, 0].unique()) == 4  # each expert has its own


def test_dropout_hangs_on_the_samples_keys_alone():
    """Half a batch drops what the whole one does there, another step drops something else; without keys nothing is dropped."""
    model = with_lora(num_experts=4, moe_layers=[1], lora=LORA | dict(lora_dropout=0.5))

    def states(ids_BL, keys_B=None):
        with torch.no_grad():
            return model.hidden_states(ids_BL, {}, key_B=keys_B, use_cache=False).last_hidden_state

    keys_B = sample_keys(0, 5, 0, 3)
    found = states(IDS_BL, keys_B)
    torch.testing.assert_close(states(IDS_BL[1:], keys_B[1:]), found[1:], rtol=0, atol=1e-6)
    assert (states(IDS_BL, sample_keys(0, 6, 0, 3)) - found).abs().max() > 0.01
    assert (states(IDS_BL) - found).abs().max() > 0.01 and torch.equal(states(IDS_BL), states(IDS_BL))


def test_the_mean_of_dropout_is_what_it_is_without():
    """Of one expert's change, over 4,000 tokens alike: inputs are dropped by half and doubled."""
    model = with_lora(num_experts=4, moe_layers=[1], lora=LORA | dict(lora_dropout=0.5))
    change = expert_feed_forwards(model.language_model)[0].moe.experts.lora.w1
    x_ND, rows = torch.ones(4000, 16), [0, 4000, 0, 0]
    with torch.no_grad():
        plain, dropped = change(x_ND, rows), change(x_ND, rows, sample_keys(0, 1, 0, 4000))
    assert not torch.equal(plain, dropped)
    torch.testing.assert_close(dropped.mean(0), plain.mean(0), rtol=0, atol=0.15)


def test_gradient_checkpointing_gives_the_same_gradients():
    """Of the same dropout; and nothing else than the changes has one."""
    found = []
    for checkpointing in (False, True):
        model = with_lora(num_experts=4, moe_layers=[1], lora=LORA | dict(lora_dropout=0.3)).train()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(CHANGES in name)
        if checkpointing:
            model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
        states_BLD = model.hidden_states(IDS_BL, {}, key_B=sample_keys(0, 5, 0, 3), use_cache=False).last_hidden_state
        model.token_loss(states_BLD, IDS_BL).loss_sum.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == {name for name, _ in model.named_parameters() if CHANGES in name}
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=1e-6)


def test_a_model_that_is_not_merged_is_saved_and_loaded(tmp_path):
    model = with_lora(num_experts=4, moe_layers=[1])
    model.save_pretrained(tmp_path)
    found, info = UniMoeForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert all(torch.equal(p, model.get_parameter(name)) for name, p in found.named_parameters())
    assert torch.equal(logits(found), logits(model))


def test_lora_is_fresh_beside_the_weights_of_an_exported_model(tmp_path):
    """`train.init_from` names a model without LoRA, as every exported one is."""
    plain = uni_moe(num_experts=4, moe_layers=[1])
    plain.save_pretrained(tmp_path)
    model = build_module(UniMoeForTraining, uni_moe_config(num_experts=4, moe_layers=[1], lora=LORA), 3, 1)
    drawn = {name: p.detach().clone() for name, p in model.named_parameters() if CHANGES in name}
    lines, sources, _ = UniMoeFamily().load_initial(model, tmp_path, SimpleNamespace(tokenizer=None))
    assert f"{len(drawn)} in all" in lines[1] and not drawn.keys() & sources.keys()
    for name, value in model.uni_moe.named_parameters():
        assert torch.equal(value, drawn[f"uni_moe.{name}"] if CHANGES in name else plain.get_parameter(name)), name
