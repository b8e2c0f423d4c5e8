"""Deep prompts: keys and values in front of those of the tokens, against attention written out; sides, masks, experts, merging.

Shapes: B batch, L tokens of an example, D width, P prompts.
"""

import pytest
import torch

from helpers.small_model import EXPERTS, assert_near, clip_inputs, small_config, small_model, text_inputs
from imp_ds import ImpConfig, ImpForPreTraining, ImpModel
from imp_ds.errors import UserError
from imp_ds.families.imp.merging import merge
from imp_ds.objectives import task_entry

WORDS = text_inputs([5, 3, 1], 6)
CLASSES = {"kind": "named_classes", "modality": "vision", "names": ["a", "b"], "prompts": [], "length": 1, "temperature": 1.0}
OBJECTIVES = {"digits": task_entry([{**CLASSES, "family": None}])}
GATED = dict(
    num_experts=4, moe_layers="all", gate="attribute", conditional_linears=["qkv", "out", "up", "down"], objectives=OBJECTIVES,
    qk_norm=True,
)  # fmt: skip


def by_hand(attention, x_BLD, valid_BL, mask_LL=None) -> torch.Tensor:
    """Attention with shared prompts, head by head and example by example, in float64."""
    heads, width = attention.heads, x_BLD.shape[-1] // attention.heads
    norm = attention.prompts.norm
    keys_PD, values_PD = (norm(attention.prompts.vectors[0, i]).double() for i in (0, 1))
    mixed_BLD = torch.zeros_like(x_BLD, dtype=torch.float64)
    for b in range(len(x_BLD)):
        query, key, value = (x_BLD[b] @ attention.qkv.weight.T).double().split(x_BLD.shape[-1], dim=-1)
        for h in range(heads):
            at = slice(h * width, (h + 1) * width)
            k, v = torch.cat([keys_PD[:, at], key[:, at]]), torch.cat([values_PD[:, at], value[:, at]])
            scores = query[:, at] @ k.T / width**0.5
            seen = valid_BL[b].expand(len(query), -1) if mask_LL is None else valid_BL[b] & mask_LL
            seen = torch.cat([torch.ones(len(query), len(keys_PD)).bool(), seen], dim=1)
            mixed_BLD[b, :, at] = scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v
    return mixed_BLD @ attention.out.weight.T.double()


@pytest.mark.parametrize("causal", [False, True])
def test_attention_with_prompts_is_that_written_out(causal):
    from imp_ds.moe.conditional import SequenceFacts

    attention = small_model(prompt_length=3).blocks[1].attention
    with torch.no_grad():
        attention.prompts.norm.weight.uniform_(0.5, 2.0)
    x_BLD, valid_BL = torch.randn(2, 6, 32), torch.arange(6) < torch.tensor([[6], [4]])
    mask_LL = torch.ones(6, 6).tril().bool() if causal else None
    found, _ = attention(x_BLD, SequenceFacts(valid_BL, mask_LL))
    torch.testing.assert_close(found.double(), by_hand(attention, x_BLD, valid_BL, mask_LL), rtol=1e-5, atol=1e-5)


def test_a_model_without_prompts_knows_nothing_of_them():
    without, with_them = small_model().state_dict(), small_model(prompt_length=10).state_dict()
    added = with_them.keys() - without.keys()
    # of each of three layers 2 x 10 vectors of 32 and a norm of 32
    assert added == {f"blocks.{i}.attention.prompts.{name}" for i in range(3) for name in ("vectors", "norm.weight")}
    assert sum(with_them[name].numel() for name in added) == 3 * (2 * 10 * 32 + 32)
    assert small_model().blocks[0].attention.prompts is None


@pytest.mark.parametrize("changes", [{}, EXPERTS, GATED], ids=["dense", "expert choice", "conditional linear layers"])
def test_moved_prompts_change_what_is_encoded_and_padding_still_does_not(changes):
    model = small_model(prompt_length=4, **changes)
    condition = model.condition("text", "digits", target=True) if changes is GATED else None
    before = model.encode("text", WORDS, condition=condition).pooled_BD
    longer = model.encode("text", text_inputs([5, 3, 1], 6, padding=7), condition=condition).pooled_BD
    assert_near(before, longer)
    with torch.no_grad():
        model.blocks[0].attention.prompts.vectors.add_(torch.randn(32))
    assert (model.encode("text", WORDS, condition=condition).pooled_BD - before).abs().max() > 1e-3


@pytest.mark.parametrize("sides, moved", [("shared", True), ("separate", False)])
def test_candidates_have_their_own_prompts_where_sides_are_separate(sides, moved):
    model = small_model(prompt_length=4, candidate_prompts=sides, objectives=OBJECTIVES)
    image, inputs = clip_inputs(2, 1, 2, 2), text_inputs([4, 2], 5)

    def encoded():
        seen = model.encode("vision", image, condition=model.condition("vision", "digits")).pooled_BD
        return seen, model.encode("text", inputs, condition=model.condition("text", "digits")).pooled_BD

    before = encoded()
    with torch.no_grad():
        for block in model.blocks:
            block.attention.prompts.vectors[0].add_(torch.randn(32))  # of what is read
    after = encoded()
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1]) is not moved


def test_the_side_is_reported_or_follows_from_the_only_task():
    model = small_model(prompt_length=2, candidate_prompts="separate", objectives=OBJECTIVES)
    assert [model.condition(m).target for m in ("vision", "audio", "text")] == [False, False, True]
    assert not model.condition("text", "digits", target=False).target and model.condition("vision", target=True).target
    shared = small_model(prompt_length=2, objectives=OBJECTIVES)
    assert not shared.condition("text").target


def test_prompts_stay_when_experts_are_merged_and_when_segments_differ_in_condition():
    torch.manual_seed(0)
    model = ImpForPreTraining(small_config(prompt_length=4, candidate_prompts="separate", **GATED)).eval()
    merged = merge(model)
    image, words = clip_inputs(3, 1, 2, 2), text_inputs([5, 3, 1], 6)
    found = []
    for encoder in (model.imp, merged.imp):
        parts = [("vision", image, encoder.condition("vision", "digits")), ("text", words, encoder.condition("text", "digits"))]
        found.append(encoder.encode_segments(parts).tokens_BLD)
    assert found[0].shape == (3, 4 + 6, 32)  # no token is a prompt
    assert_near(*found)
    assert torch.equal(merged.imp.blocks[2].attention.prompts.vectors, model.imp.blocks[2].attention.prompts.vectors)


def test_gradients_reach_prompts_through_checkpointing():
    model = small_model(prompt_length=3).train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model.encode("text", WORDS).pooled_BD.square().sum().backward()
        gradients.append([block.attention.prompts.vectors.grad.clone() for block in model.blocks])
    assert all(gradient.abs().max() > 0 for gradient in gradients[0])
    for a, b in zip(*gradients):
        assert_near(a, b)


def test_a_saved_model_has_its_prompts(tmp_path):
    model = small_model(prompt_length=5, candidate_prompts="separate")
    model.save_pretrained(tmp_path)
    again = ImpModel.from_pretrained(tmp_path)
    assert torch.equal(again.blocks[1].attention.prompts.vectors, model.blocks[1].attention.prompts.vectors)
    assert again.config.candidate_prompts == "separate"


@pytest.mark.parametrize("wrong, message", [
    # 32 / 4 * 16 / 4 = 32 positions of audio, fewer than 64 of text and 4 * 8 * 8 of vision
    (dict(prompt_length=33), "(?s)longer than the positions.*prompt_length = 33.*0 to 32, the positions of audio"),
    (dict(prompt_length=-1), "(?s)prompt_length = -1.*0 to 32"),
    (dict(candidate_prompts="both"), "(?s)unknown candidate_prompts.*both.*shared, separate"),
])  # fmt: skip
def test_unfit_prompts_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        small_config(**wrong)
    assert ImpConfig(prompt_length=10).prompt_length == 10
