"""Conditional linear layers in the encoder: which there are, which decide, what two segments do to each other, and what is
refused.

Shapes: B batch, L tokens of a sequence, D width.
"""

import pytest
import torch

from helpers.small_model import (
    GATED,
    IMAGE,
    OBJECTIVES,
    WORDS,
    assert_near,
    audio_inputs,
    caption,
    caption_mask,
    clip_inputs,
    small_config,
    small_model,
    text_inputs,
)
from imp_ds import ImpForPreTraining
from imp_ds.errors import UserError
from imp_ds.models.imp.encoder.layers import LINEAR_NOISE, RANDOM_SITES
from imp_ds.models.initialization import initialize_seeded
from imp_ds.moe.conditional import ConditionalLinear, MergedLinear, RoutedLinear
from imp_ds.randomness import sample_keys
from imp_ds.tasks import Batch

ALL = ["qkv", "out", "up", "down"]
DROP_FREE = dict(router="top_k", drop_tokens=False)


def maps_of(block) -> dict[str, torch.nn.Module]:
    parts = {"qkv": block.attention.qkv, "out": block.attention.out}
    return parts | {"up": block.feed_forward.up, "down": block.feed_forward.down}


@pytest.mark.parametrize("gate", ["context", "attribute"])
@pytest.mark.parametrize(
    "changes, conditional, deciding",
    [
        (dict(conditional_linears=ALL), ALL, ["qkv", "up"]),
        (dict(conditional_linears=ALL, share_decisions=False), ALL, ALL),
        (dict(conditional_linears=["up", "down"]), ["up", "down"], ["up"]),
        (dict(conditional_linears=["qkv", "down"]), ["qkv", "down"], ["qkv", "down"]),  # whoever could be shared with is plain
        (dict(conditional_linears=["out"]), ["out"], ["out"]),
    ],
)
def test_which_maps_are_conditional_and_which_decide(gate, changes, conditional, deciding):
    settings = DROP_FREE if gate == "context" else {}
    model = small_model(**{**GATED, **changes, **settings}, gate=gate)
    kind = RoutedLinear if gate == "context" else MergedLinear
    for index, block in enumerate(model.blocks):
        found = {name: part for name, part in maps_of(block).items() if isinstance(part, ConditionalLinear)}
        assert list(found) == (conditional if index else [])  # the last two of three layers
        assert all(type(part) is kind for part in found.values())
        assert [name for name, part in found.items() if part.router is not None] == (deciding if index else [])
        assert [part.site for part in found.values()] == [LINEAR_NOISE[name] for name in found]
    assert len({*LINEAR_NOISE.values()}) == 4 and max(LINEAR_NOISE.values()) < RANDOM_SITES


def test_constant_gates_have_maps_of_the_feed_forward_by_default():
    model = small_model(**GATED, gate="modality")
    assert model.config.conditional_linears == ["up", "down"] and model.config.router == "top_k"
    experts = dict(model.blocks[1].named_parameters())
    assert experts["feed_forward.up.experts.w"].shape == (4, 32, 48)
    assert experts["feed_forward.down.experts.w"].shape == (4, 48, 32)


def batch_of(task: str) -> Batch:
    clips, waveforms, words = clip_inputs(4, 1, 2, 2), audio_inputs(4), text_inputs([5, 3, 1, 4], 6)
    inputs = {
        "image_text": {"vision": clips, "text": words}, "speech_text": {"audio": waveforms, "text": words},
        "image_class": {"vision": clips}, "words": {"text": words}, "film": {"vision": clips, "audio": waveforms, "text": words},
    }  # fmt: skip
    hidden_BL = torch.full((4, 6), -100)
    hidden_BL[:, 0] = 7
    return Batch(task, inputs[task], {"label": torch.tensor([0, 1, 2, 0]), "token_ids": hidden_BL}, sample_keys(0, 0, 0, 4))


GATES = {
    "token": dict(gate="token", **DROP_FREE), "context": dict(gate="context", **DROP_FREE), "modality": dict(gate="modality"),
    "task": dict(gate="task"), "attribute": dict(gate="attribute"),
}  # fmt: skip


@pytest.mark.parametrize("sharing", [True, False])
@pytest.mark.parametrize("gate", GATES)
def test_no_parameter_is_built_in_vain(gate, sharing):
    """Every router, embedding, pool and expert tensor of the blocks gets a gradient from a step of any task."""
    torch.manual_seed(0)
    settings = {**GATED, **GATES[gate]}
    model = ImpForPreTraining(small_config(**settings, conditional_linears=ALL, share_decisions=sharing)).train()
    for task in OBJECTIVES:
        model.zero_grad()
        model(batch_of(task))[0].backward()
        idle = [name for name, p in model.imp.blocks.named_parameters() if p.grad is None or not p.grad.any()]
        assert not idle, (task, idle)


def two_conditions(model) -> list[tuple]:
    return [
        ("vision", IMAGE, model.condition("vision", "image_text")), ("text", WORDS, model.condition("text", "image_text")),
    ]  # fmt: skip


@pytest.mark.parametrize("gate", ["modality", "attribute"])
def test_each_segment_goes_by_its_own_condition(gate):
    """Segments that do not see each other are as if alone, each with its own condition."""
    model = small_model(**GATED, gate=gate, conditional_linears=ALL)
    parts = two_conditions(model)
    mask_LL = torch.block_diag(torch.ones(4, 4), torch.ones(6, 6)).bool()
    both = model.encode_segments(parts, mask_LL=mask_LL).tokens_BLD
    alone = [model.encode(modality, inputs, condition=condition).tokens_BLD for modality, inputs, condition in parts]
    valid_BL = WORDS["attention_mask"].bool()
    assert_near(both[:, :4], alone[0])
    assert_near(both[:, 4:][valid_BL], alone[1][valid_BL])
    swapped = [(modality, inputs, parts[1 - i][2]) for i, (modality, inputs, _) in enumerate(parts)]
    assert (model.encode_segments(swapped, mask_LL=mask_LL).tokens_BLD - both)[:, :4].abs().max() > 1e-3


def test_segments_of_one_task_share_its_decision():
    model = small_model(**GATED, gate="task", conditional_linears=ALL)
    condition, calls = model.condition("text", "words"), []
    model.blocks[1].feed_forward.up.router.register_forward_hook(lambda *call: calls.append(call))
    full = model.encode_segments([("vision", IMAGE, condition), ("text", WORDS, condition)])
    assert len(calls) == 1
    apart = model.encode_segments([("vision", IMAGE, condition), ("text", WORDS, model.condition("text", "words"))])
    assert len(calls) == 3
    assert_near(full.tokens_BLD, apart.tokens_BLD)


@pytest.mark.parametrize("gate", GATES)
def test_no_word_sees_what_follows_through_its_experts(gate):
    """A context router pools what a word sees; a constant gate knows no words at all."""
    model = small_model(**{**GATED, **GATES[gate]}, conditional_linears=ALL)
    task = "image_text"

    def encoded(ids_BL):
        words = {**WORDS, "input_ids": ids_BL}
        queries = {**WORDS, "input_ids": torch.full_like(ids_BL, 49)}
        parts = [("vision", IMAGE), ("text", words), ("text", queries)]
        return model.encode_segments([(m, x, model.condition(m, task)) for m, x in parts], mask_LL=mask_LL).tokens_BLD

    mask_LL = caption_mask()
    before = encoded(WORDS["input_ids"])
    for place in range(1, 5):
        ids_BL = WORDS["input_ids"].clone()
        ids_BL[0, place] = 48
        changed_L = (encoded(ids_BL) - before)[0].abs().amax(1) > 1e-6
        assert not changed_L[: 4 + place].any() and changed_L[4 + place]
        assert not changed_L[10 : 10 + place + 1].any() and changed_L[10 + place + 1]


@pytest.mark.parametrize("gate", GATES)
def test_checkpointing_draws_the_same_noise(gate):
    found = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        settings = {**GATED, **GATES[gate]}
        model = ImpForPreTraining(small_config(**settings, conditional_linears=ALL, router_noise=1.0, hidden_dropout=0.1)).train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        model(batch_of("image_text"))[0].backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert_near(found[1][name], gradient, 1e-6)


@pytest.mark.parametrize("gate", GATES)
def test_noise_is_for_training_with_keys_alone(gate):
    settings = {**GATED, **GATES[gate], "experts_per_token": 4}  # weights of all experts: noise changes every answer
    model = small_model(**settings, conditional_linears=ALL, router_noise=1.0)
    condition, text = model.condition("text", "words"), text_inputs([3, 5], 6)
    quiet = model.encode("text", text, sample_keys(0, 3, 0, 2), condition).pooled_BD
    assert torch.equal(quiet, model.encode("text", text, None, condition).pooled_BD)
    model.train()
    assert torch.equal(quiet, model.encode("text", text, None, condition).pooled_BD)
    noisy = [model.encode("text", text, sample_keys(0, step, 0, 2), condition).pooled_BD for step in (3, 3, 4)]
    assert torch.equal(noisy[0], noisy[1])
    assert min((noisy[0] - other).abs().max().item() for other in (quiet, noisy[2])) > 1e-6


def test_a_slice_of_a_maps_experts_gets_the_weights_of_the_whole():
    full = small_model(**GATED, gate="attribute", conditional_linears=ALL)
    initialize_seeded(full, 7, 0.02)
    for first in (0, 2):
        part = small_model(**GATED, gate="attribute", conditional_linears=ALL)
        for block in part.blocks[1:]:
            for linear in maps_of(block).values():
                linear.experts = linear.experts.slice(first, 2)
        initialize_seeded(part, 7, 0.02)
        for mine, all_of_them in zip(part.blocks[1:], full.blocks[1:]):
            for name, linear in maps_of(mine).items():
                assert torch.equal(linear.experts.w, maps_of(all_of_them)[name].experts.w[first : first + 2])


REFUSED = {
    "a constant gate with expert choice": (
        dict(gate="modality", router="expert_choice"), "(?s)modality gate with router expert_choice.*look alike.*top_k",
    ),
    "an unknown gate": (dict(gate="smell"), "(?s)unknown gate.*smell.*token, context, modality, task, attribute"),
    "expert choice on queries": (
        dict(conditional_linears=["qkv", "up"]), "(?s)qkv of a token that no expert took.*no query.*router = expert_choice",
    ),
    "dropped queries": (
        dict(conditional_linears=ALL, router="top_k"), "(?s)qkv and out of a token.*drop_tokens = true.*drop_tokens = false",
    ),
    "unknown linears": (dict(conditional_linears=["up", "sideways"]), "(?s)names no linear layers.*sideways.*qkv, out, up, down"),
    "no linears": (dict(conditional_linears=[]), "names no linear layers"),
    "gated experts": (dict(conditional_linears=["up"], expert_activation="geglu"), "(?s)those of the dense feed-forward.*geglu"),
    "narrow experts": (dict(conditional_linears=["up"], expert_intermediate_size=24), "(?s)one width.*intermediate_size = 24"),
    "too many choices": (dict(gate="task", experts_per_token=5), "(?s)cannot choose that many.*experts_per_token = 5.*1 to"),
    "a task gate without tasks": (dict(gate="task", objectives={}), "a task gate without tasks"),
    "a task that its gate does not know": (
        dict(gate="task", gate_tasks=["words", "film"]),
        "(?s)does not know a task that is trained.*got: +image_class, image_text, speech_text\n.*words, film",
    ),
}  # fmt: skip


@pytest.mark.parametrize("changes, message", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        small_config(**{**GATED, **changes})


def test_a_mask_is_refused_where_tokens_compete():
    with pytest.raises(UserError, match="(?s)let each token depend on those that its mask hides.*router = expert_choice"):
        caption(small_model(**GATED))
