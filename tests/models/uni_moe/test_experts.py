"""Mixtures in language models against the dense models that they are made of, and against transformers' own mixtures.

Shapes: B batch, L tokens of an example, D width, E experts.
"""

import pytest
import torch
from transformers import DynamicCache

from helpers.language_models import DENSE, HIDDEN, SPARSE, VOCAB, WIDTH, expert_settings, language_model
from imp_ds.errors import UserError
from imp_ds.models.initialization import initialize_module
from imp_ds.models.uni_moe.experts import ExpertFeedForward, KindMaps, TokenFacts, expert_feed_forwards, replace_feed_forwards
from imp_ds.models.uni_moe.upcycling import from_base

IDS = torch.randint(0, VOCAB, (3, 9), generator=torch.Generator().manual_seed(1))


def with_experts(model, **changes):
    """A copy of a model whose feed-forwards are experts: its weights upcycled, routers drawn."""
    config, state = expert_settings(**changes), model.state_dict()
    new = type(model)(model.config).eval()
    new.facts = replace_feed_forwards(new, config)
    torch.manual_seed(5)
    for module in new.modules():
        if isinstance(module, (KindMaps, type(expert_feed_forwards(new)[0].moe.router))):
            initialize_module(module, std=1.0)
    left = new.load_state_dict(from_base(state, new, HIDDEN), strict=False)
    assert not left.unexpected_keys and all("router" in name or "maps" in name for name in left.missing_keys)
    return new


def logits(model, ids=IDS, **inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, **inputs).logits


@pytest.mark.parametrize("kind", DENSE)
def test_equal_experts_equal_the_dense_model(kind):
    """Weights of a token sum to 1, whatever the router is."""
    model = language_model(kind)
    torch.testing.assert_close(logits(with_experts(model)), logits(model), rtol=1e-5, atol=1e-5)
    half = with_experts(model, moe_layers="every:2", num_experts_per_tok=1)
    assert [type(layer.mlp) is ExpertFeedForward for layer in half.model.layers] == [False, True]
    torch.testing.assert_close(logits(half), logits(model), rtol=1e-5, atol=1e-5)


def test_slices_of_all_experts_equal_the_dense_model():
    """4 experts of half the width: two copies, each in two slices, and 2 of 4 for a token: one whole copy, by shared rows."""
    model = language_model("llama")
    sliced = with_experts(model, moe_intermediate_size=HIDDEN // 2)
    for mixture in expert_feed_forwards(sliced):
        mixture.moe.router.weight.data.copy_(mixture.moe.router.weight.data[::2].repeat_interleave(2, 0))
    torch.testing.assert_close(logits(sliced), logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("expert", [0, 2])
def test_a_gate_forced_to_an_expert_gives_its_answers(expert):
    """Experts that differ: all answers are those of a model with that expert alone, four times."""
    model = language_model("mistral")
    mixed = with_experts(model, num_experts_per_tok=1)
    expected = with_experts(model)
    for seed, (mixture, plain) in enumerate(zip(expert_feed_forwards(mixed), expert_feed_forwards(expected))):
        for name in ("w1", "w2", "w3"):
            stack = mixture.moe.experts.get_parameter(name).data
            stack.mul_(torch.rand(4, 1, 1, generator=torch.Generator().manual_seed(seed)) + 0.5)
            plain.moe.experts.get_parameter(name).data.copy_(stack[expert].expand_as(stack))
        mixture.moe.router.choose = forced(expert)
    torch.testing.assert_close(logits(mixed), logits(expected), rtol=1e-5, atol=1e-5)


def forced(expert: int):
    """A decision of a router for one expert, with weight 1."""

    def choose(logits_GSE, valid_GS, counted=None):
        tokens = logits_GSE.shape[0] * logits_GSE.shape[1]
        count_E = torch.zeros(logits_GSE.shape[2], dtype=torch.int64)
        count_E[expert] = tokens
        return torch.arange(tokens), torch.ones(tokens), count_E, torch.zeros(())

    return choose


@pytest.mark.parametrize("kind, changes", [("mixtral", {}), ("qwen3_moe", {}), ("qwen3_moe", dict(norm_topk_prob=True)),
                                           ("mixtral", dict(num_experts_per_tok=1))])  # fmt: skip
def test_sparse_models_answer_as_in_transformers(kind, changes):
    model = language_model(kind, **changes)
    for layer in model.model.layers:
        layer.mlp.gate.weight.data.normal_()
    asked = {"norm_topk_prob": model.config.norm_topk_prob} if kind == "qwen3_moe" else {}
    ours = with_experts(model, num_experts_per_tok=model.config.num_experts_per_tok, **asked)
    torch.testing.assert_close(logits(ours), logits(model), rtol=1e-5, atol=1e-5)
    labels = IDS.clone()
    for one in (model, ours):
        one(input_ids=IDS, labels=labels).loss.backward()
    expected = from_base({name: p.grad for name, p in model.named_parameters()}, ours, HIDDEN)
    assert {name for name, p in ours.named_parameters()} == set(expected)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
def test_a_layer_without_experts_of_a_sparse_model_stays(kind):
    """Qwen3-MoE's own `mlp_only_layers` are dense; of a dense model nothing is replaced where no experts are asked for."""
    changes = dict(mlp_only_layers=[0]) if kind == "qwen3_moe" else {}
    model = language_model(kind, **changes)
    replace_feed_forwards(model, expert_settings(num_experts=4 if changes else 0, norm_topk_prob=False))
    assert [type(layer.mlp) is ExpertFeedForward for layer in model.model.layers] == [False, kind == "qwen3_moe"]


def test_padding_is_taken_by_no_expert():
    """Left-padded prompts: valid tokens answer as alone, and padding weighs in no expert's usage."""
    model = with_experts(language_model("llama", attn_implementation="eager"))
    mask = torch.ones_like(IDS)
    mask[0, :4] = 0
    model.facts.set(valid_BL=mask.bool())
    found = logits(model, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    usage_padded = expert_feed_forwards(model)[0].report.usage_E
    model.facts.set()
    torch.testing.assert_close(found[:1, 4:], logits(model, IDS[:1, 4:]), rtol=1e-5, atol=1e-5)
    # other tokens in the place of padding change no usage of the first layer
    model.facts.set(valid_BL=mask.bool())
    logits(model, torch.where(mask.bool(), IDS, 3), attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    torch.testing.assert_close(expert_feed_forwards(model)[0].report.usage_E, usage_padded)
    mixture = expert_feed_forwards(model)[0]
    assert not mixture(torch.randn(3, 9, WIDTH))[0, :4].any()


def test_facts_of_other_tokens_are_refused():
    model = with_experts(language_model("llama"))
    model.facts.set(valid_BL=torch.ones(3, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"valid_BL is of \(3, 8\) tokens, a pass over \(3, 9\)"):
        logits(model)


def test_steps_of_decoding_equal_one_pass():
    """One token after the other, from a cache of keys and values; and a sequence longer than a routing group of other models."""
    model = with_experts(language_model("qwen3"))
    cache, found = DynamicCache(config=model.config), []
    for place in range(IDS.shape[1]):
        found.append(logits(model, IDS[:, place : place + 1], past_key_values=cache, use_cache=True))
    torch.testing.assert_close(torch.cat(found, 1), logits(model), rtol=1e-5, atol=1e-5)
    mixture = expert_feed_forwards(model)[0]
    assert mixture(torch.randn(1, 3000, WIDTH)).shape == (1, 3000, WIDTH)


def test_maps_that_are_the_identity_change_nothing_and_others_the_gate_alone():
    model = language_model("llama")
    kinds = torch.randint(0, 4, IDS.shape, generator=torch.Generator().manual_seed(2))
    plain, mapped = with_experts(model), with_experts(model, modality_maps=True)
    for one in (plain, mapped):
        one.facts.set(kind_BL=kinds)
    mapped.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(logits(mapped), logits(plain))
    for mixture in expert_feed_forwards(mapped):
        mixture.maps.weight.data.normal_(generator=torch.Generator().manual_seed(3))
    logits(mapped)
    assert not torch.equal(*(expert_feed_forwards(one)[0].logits_BLE for one in (plain, mapped)))
    torch.testing.assert_close(logits(mapped), logits(model), rtol=1e-5, atol=1e-5)  # equal experts: no gate changes answers


def test_each_kind_has_its_map():
    """Against a loop over tokens in float64."""
    maps = KindMaps(WIDTH)
    maps.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    x_BLD, kind_BL = torch.randn(2, 5, WIDTH), torch.tensor([[0, 3, 3, 1, 0], [3, 0, 0, 0, 1]])
    expected = torch.stack([torch.stack([maps.weight[kind].double() @ x.double() for x, kind in zip(*row)])
                            for row in zip(x_BLD, kind_BL)])  # fmt: skip
    torch.testing.assert_close(maps(x_BLD, kind_BL).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(maps(x_BLD, None), x_BLD @ maps.weight[0].T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("asked, said", [
    (dict(num_experts=8), "(?s)qwen3_moe.*num_experts = 8.*num_experts = 4"),
    (dict(num_experts_per_tok=1, norm_topk_prob=True), "(?s)per_tok = 1, norm_topk_prob = True.*= 2, norm_topk_prob = False"),
    (dict(moe_intermediate_size=7), "(?s)moe_intermediate_size = 7.*moe_intermediate_size = 24"),
])  # fmt: skip
def test_numbers_that_are_not_the_sparse_models_own_are_refused(asked, said):
    with pytest.raises(UserError, match=said):
        replace_feed_forwards(language_model("qwen3_moe"), expert_settings(**dict(norm_topk_prob=False) | asked))


@pytest.mark.parametrize(
    "changes, said", [(dict(hidden_act="gelu"), "hidden_act = gelu"), (dict(mlp_bias=True), "without biases")]
)
def test_other_feed_forwards_are_refused(changes, said):
    with pytest.raises(UserError, match=said):
        replace_feed_forwards(language_model("llama", **changes), expert_settings())


def test_new_modules_lie_where_the_old_ones_lay():
    with torch.device("meta"):
        model = language_model("llama").bfloat16()
    replace_feed_forwards(model, expert_settings(modality_maps=True))
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}
    assert SPARSE and isinstance(expert_feed_forwards(model)[0].facts, TokenFacts)
