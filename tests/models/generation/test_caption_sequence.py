"""Captions token by token: what a word and a query see, for every gate that may be, and that one pass equals many.

Shapes: B samples, K captions of each, W words, Q queries, L tokens of a sequence, D width, V words of the vocabulary.
"""

import pytest
import torch

from helpers.small_model import assert_near, audio_inputs, clip_inputs, small_model
from imp_ds.errors import UserError
from imp_ds.models.imp.conditions import attribute_names
from imp_ds.models.imp.generation.caption_sequence import ConditioningPrefix, caption_mask, encode_captions, query_states
from imp_ds.objectives import task_entry

WORDS, SPE, VOCABULARY = 5, 3, 50
CAPTIONS = {"captions": task_entry([{"kind": "captioning", "modality": "vision", "family": "caption"}])}
ROUTED = dict(num_experts=4, moe_layers="last:2", router="top_k", drop_tokens=False, group_examples=1)
CONSTANT = dict(num_experts=4, moe_layers="all", conditional_linears=["qkv", "out", "up", "down"], objectives=CAPTIONS)
ENCODERS = {
    "dense": {},
    "token": ROUTED,
    "token, four linears": dict(ROUTED, conditional_linears=["qkv", "out", "up", "down"]),
    "context": dict(ROUTED, gate="context"),
    "modality": dict(CONSTANT, gate="modality"),
    "task": dict(CONSTANT, gate="task"),
    "attribute": dict(CONSTANT, gate="attribute"),
}

ATTRIBUTES = attribute_names(["vision", "audio", "text"])


def build(**encoder):
    return small_model(mask_token_id=SPE, **encoder)


def conditioning_prefix(model, modality="vision", inputs=None) -> ConditioningPrefix:
    conditions = (model.condition(segment, "captions") for segment in (modality, "text"))
    return ConditioningPrefix(modality, clip_inputs(3, 1, 2, 2) if inputs is None else inputs, *conditions)


def words(captions: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randint(4, VOCABULARY, (3, captions, WORDS), generator=torch.Generator().manual_seed(seed))


def states(model, prefix: ConditioningPrefix, ids_BKW, token_positions=range(WORDS)) -> torch.Tensor:
    return query_states(encode_captions(model, prefix, ids_BKW, token_positions), ids_BKW.shape[1])


@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)
def test_a_query_sees_nothing_of_its_word_and_of_those_that_follow(encoder):
    model = build(**encoder)
    prefix, ids_BKW = conditioning_prefix(model), words()
    before_BQD = states(model, prefix, ids_BKW)[:, 0]
    for position in range(WORDS):
        changed_BKW = ids_BKW.clone()
        changed_BKW[:, 0, position] = 4 + (ids_BKW[:, 0, position] - 3) % (VOCABULARY - 4)  # another word
        difference_BQ = (states(model, prefix, changed_BKW)[:, 0] - before_BQD).abs().amax(2)
        assert (difference_BQ[:, : position + 1] < 1e-6).all(), position
        assert (difference_BQ[:, position + 1 :] > 1e-5).all(), position


@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)
def test_one_pass_equals_a_pass_for_each_word(encoder):
    """Also where several captions stand side by side, as in a beam."""
    model = build(**encoder)
    prefix, ids_BKW = conditioning_prefix(model), words(captions=2)
    full_BKQD = states(model, prefix, ids_BKW)
    for caption in range(2):
        alone_BKQD = states(model, prefix, ids_BKW[:, caption : caption + 1])
        assert_near(full_BKQD[:, caption], alone_BKQD[:, 0])
    for position in range(WORDS):
        step_BKQD = states(model, prefix, ids_BKW[..., :position], range(position, position + 1))
        assert_near(step_BKQD[:, :, 0], full_BKQD[:, :, position])


@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)
def test_the_input_sees_no_word_and_every_query_sees_the_input(encoder):
    model = build(**encoder)
    encoding = encode_captions(model, conditioning_prefix(model), words(), range(WORDS))
    other = encode_captions(model, conditioning_prefix(model), words(seed=1), range(WORDS))
    assert encoding.lengths[:2] == (1, 4) and sum(encoding.lengths) == 5 + 2 * WORDS
    assert_near(encoding.tokens_BLD[:, :5], other.tokens_BLD[:, :5])
    elsewhere = conditioning_prefix(model, inputs=clip_inputs(3, 1, 2, 2, seed=1))
    difference_BLD = encode_captions(model, elsewhere, words(), range(WORDS)).tokens_BLD - encoding.tokens_BLD
    assert (difference_BLD.abs().amax(2) > 1e-5).all()


def test_padding_changes_nothing():
    model = build()
    prefix, ids_BKW = conditioning_prefix(model), words()
    short_BKQD = states(model, prefix, ids_BKW[..., :3], range(3))
    valid_BKQ = (torch.arange(WORDS) < 3).expand(3, 1, WORDS)
    encoding = encode_captions(model, prefix, ids_BKW, range(WORDS), valid_BKQ)
    assert_near(query_states(encoding)[:, :, :3], short_BKQD)
    assert encoding.tokens_BLD.isfinite().all()


def test_the_mask_by_hand():
    """S = 1, two captions of two words, and a query of position 2 for each."""
    mask_LL = caption_mask(1, 2, torch.tensor([0, 1, 0, 1]), torch.tensor([2, 2]))
    assert mask_LL.int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 0, 0, 1, 0, 0, 0],
        [1, 0, 0, 1, 1, 0, 0],
        [1, 1, 1, 0, 0, 1, 0],
        [1, 0, 0, 1, 1, 0, 1],
    ]


def test_recordings_have_captions_too():
    model = build()
    encoding = encode_captions(model, conditioning_prefix(model, "audio", audio_inputs(3)), words(), range(WORDS))
    assert query_states(encoding).shape == (3, 1, WORDS, 32) and encoding.lengths == (1, 16, WORDS, WORDS)


def test_the_conditions_of_both_halves():
    """The row "caption, image part" and "caption, text part" of the release, and that of the words among which it looks."""
    model = build(**ENCODERS["attribute"])
    names = lambda condition: [name for name, bit in zip(ATTRIBUTES, condition.known[0].tolist()) if bit]  # noqa: E731
    read = ["input_vision", "input_text", "target_text"]
    assert names(model.condition("vision", "captions")) == [*read, "token_vision"]
    assert names(model.condition("text", "captions")) == [*read, "token_text", "causal"]
    assert names(model.condition("text", "captions", target=True)) == [*read, "token_text", "target_side"]


@pytest.mark.parametrize("router", [dict(router="expert_choice"), dict(router="top_k", drop_tokens=True)])
def test_experts_for_which_words_compete_are_refused(router):
    with pytest.raises(UserError, match="words would see what follows them"):
        build(num_experts=4, moe_layers="all", group_examples=1, objectives=CAPTIONS, **router)


def test_what_is_refused():
    with pytest.raises(UserError, match="longer than the model's texts"):
        model = build()
        states(model, conditioning_prefix(model), words(), range(65))
    with pytest.raises(UserError, match="mask_token_id"):
        model = small_model()
        states(model, conditioning_prefix(model), words())
