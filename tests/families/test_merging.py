"""Merging: equal outputs, no router, the dense parameters and a copy for each additional condition, and what cannot be merged."""

import pytest
import torch

from helpers.small_model import (
    GATED,
    IMAGE,
    OBJECTIVES,
    WORDS,
    audio_inputs,
    caption_mask,
    clip_inputs,
    small_config,
    small_model,
    text_inputs,
)
from imp_ds import ImpConfig, ImpForPreTraining, ImpModel
from imp_ds.errors import UserError
from imp_ds.families.imp.initial_weights import load_initial
from imp_ds.families.imp.merging import merge
from imp_ds.families.imp.upcycling import upcycle
from imp_ds.objectives import task_entry

ALL = ["qkv", "out", "up", "down"]
CONDITIONS = {
    "modality": 3,
    "task": 5,
    "attribute": 11,
}  # of OBJECTIVES: what each gate distinguishes (tests/models/test_conditions.py)
INPUTS = {"vision": clip_inputs(2, 1, 2, 2), "audio": audio_inputs(2), "text": text_inputs([3, 5], 6)}


def trained(gate: str, kind=ImpModel, **changes):
    """A model whose gates choose unequally, with and without noise in training."""
    torch.manual_seed(0)
    model = kind(small_config(**{**GATED, **changes}, gate=gate, router_noise=1.0)).eval()
    for name, parameter in model.named_parameters():
        if "router" in name:
            torch.nn.init.normal_(parameter)
    return model


def parameters(model) -> int:
    return sum(p.numel() for p in model.parameters())


def encode_all(model, tasks=OBJECTIVES) -> dict:
    """Every modality as every task has it, on both sides where it can be known."""
    encoder, found = model.base_model, {}
    with torch.no_grad():
        for task in tasks:
            for modality in {"image_text": ("vision", "text"), "words": ("text",), "film": ("vision", "audio", "text")}.get(
                task, ()
            ):
                condition = encoder.condition(modality, task)
                found[task, modality] = encoder.encode(modality, INPUTS[modality], condition=condition).pooled_BD
    return found


@pytest.mark.parametrize("chosen", [1, 2, 4])
@pytest.mark.parametrize("changes", [dict(conditional_linears=ALL), dict(), dict(conditional_linears=ALL, share_decisions=False)])
@pytest.mark.parametrize("gate", CONDITIONS)
def test_outputs_are_those_of_the_experts(gate, changes, chosen):
    model = trained(gate, **changes, experts_per_token=chosen)
    merged = merge(model)
    before, after = encode_all(model), encode_all(merged)
    assert len(before) == 6
    assert max((before[key] - after[key]).abs().max().item() for key in before) < 1e-5
    out, merged_out = (m(**INPUTS["text"], task="words") for m in (model, merged))
    assert max((out.embeddings[name] - merged_out.embeddings[name]).abs().max().item() for name in out.embeddings) < 1e-5
    assert merged_out.router_z_loss == 0
    if gate != "modality" and chosen < 4:  # the conditions do lead to different matrices
        assert (before["image_text", "text"] - before["film", "text"]).abs().max() > 1e-3


def test_two_segments_have_their_own_copies():
    model = trained("attribute", conditional_linears=ALL)
    found = []
    for each in (model, merge(model)):
        parts = [(m, x, each.condition(m, "image_text")) for m, x in (("vision", IMAGE), ("text", WORDS), ("text", WORDS))]
        with torch.no_grad():
            found.append(each.encode_segments(parts, mask_LL=caption_mask()).tokens_BLD)
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)


@pytest.mark.parametrize("gate, conditions", CONDITIONS.items())
def test_it_is_dense_but_for_a_copy_of_its_conditional_linears_for_each_further_condition(gate, conditions):
    model = trained(gate, ImpForPreTraining, conditional_linears=ALL)
    merged = merge(model)
    assert len(merged.config.merged_conditions) == conditions
    dense = ImpForPreTraining(ImpConfig.from_dict({**model.config.to_dict(), "num_experts": 0}))
    # two layers of four linear layers: 4 * 32^2 + 2 * 32 * 48 each
    assert parameters(merged) == parameters(dense) + (conditions - 1) * 2 * (4 * 32**2 + 2 * 32 * 48)
    assert not [name for name, _ in merged.named_parameters() if "router" in name or "experts" in name]


def test_the_published_size():
    """Uni-Perceiver-MoE-base is 124 M parameters and merged, for images and text, 167 M: 6 layers of 12 * 768^2 = 42.5 M more."""
    task = task_entry([{"kind": "contrastive", "pairs": [["vision", "text"]]}])
    settings = dict(moe_layers="every:2", gate="attribute", conditional_linears=ALL, objectives={"captions": task}, qk_norm=False)
    with torch.device("meta"):
        dense = ImpModel(ImpConfig.from_size("B"))
        row = "input_vision+target_text+token_"
        merged = ImpModel(ImpConfig.from_size("B", **settings, merged_conditions=[f"{row}vision", f"{row}text+target_side"]))
    assert parameters(merged) - parameters(dense) == 6 * 12 * 768**2 == 42_467_328


def test_for_some_tasks_alone():
    model = trained("attribute", conditional_linears=ALL)
    merged = merge(model, ["image_text", "words"])
    assert [name.split("+")[-1] for name in merged.config.merged_conditions] == [
        "token_vision", "target_side", "token_text", "target_side",
    ]  # fmt: skip
    before, after = encode_all(model, ("image_text", "words")), encode_all(merged, ("image_text", "words"))
    assert max((before[key] - after[key]).abs().max().item() for key in before) < 1e-5
    with pytest.raises(UserError, match="(?s)merged for other conditions.*got: +input_audio.*allowed: input_vision.*--task"):
        merged.condition("audio", "speech_text")


def test_it_survives_the_disk(tmp_path):
    merged = merge(trained("task", ImpForPreTraining, conditional_linears=ALL))
    merged.save_pretrained(tmp_path)
    expected = encode_all(merged)
    for kind in (ImpForPreTraining, ImpModel):
        loaded, found = kind.from_pretrained(tmp_path, output_loading_info=True)
        assert not found["missing_keys"] and not found["unexpected_keys"]
        assert loaded.config.merged_conditions == list(OBJECTIVES)
        after = encode_all(loaded)
        assert all(torch.equal(expected[key], after[key]) for key in expected)


def test_type_and_device_are_the_models_own():
    merged = merge(trained("modality").bfloat16())
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16} and not merged.training


REFUSED = {
    "a token gate": (dict(gate="token"), None, "(?s)token gate cannot be merged: it chooses experts anew.*modality"),
    "a context gate": (dict(gate="context"), None, "context gate cannot be merged"),
    "a dense model": (dict(num_experts=0), None, "nothing to merge"),
    "an unknown task": (dict(gate="task"), ["words", "birds"], "(?s)no such task.*got: +birds\n.*image_text"),
    "no task": (dict(gate="modality", objectives={}), None, "no such task"),
}  # fmt: skip


@pytest.mark.parametrize("settings, tasks, message", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_merged_is_refused(settings, tasks, message):
    with pytest.raises(UserError, match=message):
        merge(small_model(**{**GATED, **settings}), tasks)


def test_a_merged_model_is_nothing_to_train_on_from(tmp_path):
    with_experts = trained("modality", ImpForPreTraining)
    merged = merge(with_experts)
    merged.save_pretrained(tmp_path)
    for call in (lambda: merge(merged), lambda: upcycle(merged, num_experts=4), lambda: load_initial(with_experts, tmp_path)):
        with pytest.raises(UserError, match="nothing to merge|a copy for each condition|holds a merged model"):
            call()
