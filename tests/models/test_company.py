"""Outside of training an example routes alone: its vector hangs neither on what is beside it in the batch nor on its padding.

Shapes: B batch, L tokens of an example, D width.
"""

import pytest
import torch

from helpers.small_model import EXPERTS, GROUPS, ROUTERS, assert_near, audio_inputs, clip_inputs, small_model, text_inputs
from imp_ds.moe.routers.registry import build_router
from imp_ds.moe.routing import Counted, RoutingContext, expert_slots

INPUTS = {
    "vision": lambda: clip_inputs(6, 2, 4, 4),
    "audio": lambda: audio_inputs(6),
    "text": lambda: text_inputs([5, 8, 1, 12, 3, 9], 12),
}


@pytest.mark.parametrize("modality", INPUTS)
@pytest.mark.parametrize("router", ROUTERS)
def test_no_neighbour_matters(router, modality):
    """With groups of several examples, vectors moved by up to 0.5 in these models."""
    model, inputs = small_model(**GROUPS, **ROUTERS[router]), INPUTS[modality]()
    with torch.no_grad():
        together_BD = model.encode(modality, inputs).pooled_BD
        for rows in ([0], [3, 4, 5], [5, 0]):
            few_BD = model.encode(modality, {name: tensor[rows] for name, tensor in inputs.items()}).pooled_BD
            assert_near(few_BD, together_BD[rows], 2e-5)


@pytest.mark.parametrize("text_length", [None, 4, 10, 20])
@pytest.mark.parametrize("router", ROUTERS)
def test_padding_does_not_matter(router, text_length):
    model = small_model(**GROUPS, **ROUTERS[router], text_length=text_length)
    words = [5, 8, 1, 2]
    with torch.no_grad():
        alone = [
            model.encode("text", {"input_ids": text_inputs(words, 40)["input_ids"][i : i + 1, :n]}) for i, n in enumerate(words)
        ]
        for length in (8, 13, 40):
            padded_BD = model.encode("text", text_inputs(words, length)).pooled_BD
            assert_near(torch.cat([encoding.pooled_BD for encoding in alone]), padded_BD, 2e-5)


def test_texts_padded_as_in_training_are_encoded_as_there():
    """With one example in a group training too knows no neighbours, and counts the padding: 12 tokens."""
    model, inputs = small_model(**EXPERTS, text_length=12), INPUTS["text"]()
    with torch.no_grad():
        assert_near(model.eval().encode("text", inputs).pooled_BD, model.train().encode("text", inputs).pooled_BD)


def test_training_still_shares_groups():
    model, inputs = small_model(**GROUPS), INPUTS["vision"]()
    with torch.no_grad():
        together_BD, few_BD = (
            model.train().encode("vision", given).pooled_BD for given in (inputs, {n: t[:1] for n, t in inputs.items()})
        )
    assert (together_BD[:1] - few_BD).abs().max() > 1e-3


def test_several_segments_count_each_in_its_way():
    """A mark of one token, a picture of 16, and a text of 5 words that counts as 8: the padding of 12 or 30 does not matter."""
    model = small_model(**GROUPS, text_length=8)
    mark = {"input_ids": torch.full((2, 1), 3)}
    with torch.no_grad():
        pooled = [
            model.encode_segments(
                [("text", mark, None), ("vision", clip_inputs(2, 1, 4, 4), None), ("text", text_inputs([5, 7], length), None)]
            ).pooled_BD
            for length in (12, 30)
        ]
    assert_near(*pooled, 2e-5)


def test_slots_by_hand():
    """E = 4, factor 1: counts of 1, 6 and 10 tokens have max(1, round(0.25)) = 1, round(1.5) = 2 and round(2.5) = 2 slots; the
    rows are those of the most, round(10 / 4) = 2."""
    slots, filled_G = expert_slots(10, 4, 1.0, Counted(10, torch.tensor([1, 6, 10])))
    assert slots == 2 and filled_G.tolist() == [1, 2, 2]
    assert expert_slots(3, 4, 1.0, Counted(16)) == (3, None)  # 4 slots, of which 3 tokens fill 3
    assert expert_slots(16, 4, 1.0, None) == (4, None)


def test_slots_beyond_those_of_an_example_are_empty():
    router = build_router("expert_choice", 2, 2)
    torch.nn.init.zeros_(router.weight)
    counted = Counted(4, torch.tensor([2, 4]))  # 1 and 2 slots of 2 experts
    routing = router(torch.zeros(8, 2), RoutingContext(4, torch.tensor([True, True, False, False] + [True] * 4), counted=counted))
    assert (routing.weight_N.view(2, 2, 2) > 0).sum(-1).tolist() == [[1, 2], [1, 2]]  # [expert][example]
