"""Conditions: every attribute of every kind of segment, and what is said to a task or an attribute that nobody knows."""

import pytest
import torch

from helpers.small_model import GATED, OBJECTIVES, audio_inputs, clip_inputs, small_model, text_inputs
from imp_ds.errors import UserError
from imp_ds.models.imp.conditions import Sides, attribute_names, segment_attributes, task_conditions, task_sides

CAPTIONS = Sides(frozenset(["vision", "text"]), frozenset(["text"]), causal=frozenset(["text"]))

# (task, modality, on the side of the candidates) -> the names, in their order. The released rows (reference: `moe_embeddings.py`)
# are those of a picture and its text: 10011000 and 10010110
ROWS = {
    ("image_text", "vision", False): "input_vision target_text token_vision",
    ("image_text", "text", True): "input_vision target_text token_text target_side",
    ("speech_text", "audio", False): "input_audio target_text token_audio",
    ("speech_text", "text", True): "input_audio target_text token_text target_side",
    ("image_class", "vision", False): "input_vision token_vision",
    ("words", "text", False): "input_text target_text token_text",
    ("words", "text", True): "input_text target_text token_text target_side",
    ("film", "vision", False): "input_vision input_audio target_audio target_text token_vision",
    ("film", "audio", False): "input_vision input_audio target_audio target_text token_audio",
    ("film", "audio", True): "input_vision input_audio target_audio target_text token_audio target_side",
    ("film", "text", True): "input_vision input_audio target_audio target_text token_text target_side",
}
CAPTION_ROWS = {
    "vision": "input_vision input_text target_text token_vision",  # released: 11011000
    "text": "input_vision input_text target_text token_text causal",  # released: 11010101
}

ATTRIBUTES = attribute_names(["vision", "audio", "text"])


def model_with(gate: str, **changes):
    return small_model(**GATED, gate=gate, **changes)


class TestAttributes:
    @pytest.mark.parametrize("place", ROWS)
    def test_of_every_segment(self, place):
        task, modality, target = place
        sides = task_sides(task, OBJECTIVES[task]["objectives"])
        assert " ".join(segment_attributes(modality, sides, target)) == ROWS[place]

    @pytest.mark.parametrize("task", OBJECTIVES)
    def test_the_conditions_of_a_task_are_those_of_its_segments(self, task):
        wanted = [names.replace(" ", "+") for (of, _, _), names in ROWS.items() if of == task]
        assert task_conditions(model_with("attribute").config, task) == wanted

    def test_a_segment_is_a_candidate_where_the_task_only_looks_for_it(self):
        sides = task_sides("film", OBJECTIVES["film"]["objectives"])
        marked = {modality: "target_side" in segment_attributes(modality, sides) for modality in ("vision", "audio", "text")}
        assert marked == {"vision": False, "audio": False, "text": True}  # the recording is read too, by the classification

    def test_captions_from_pictures_and_words_are_causal_among_words(self):
        for modality, names in CAPTION_ROWS.items():
            assert " ".join(segment_attributes(modality, CAPTIONS, target=False)) == names

    def test_bits_are_in_the_order_of_the_names(self):
        model = model_with("attribute")
        bits_1A = model.condition("text", "image_text").known
        names = [name for name, bit in zip(ATTRIBUTES, bits_1A[0]) if bit]
        assert bits_1A.shape == (1, len(ATTRIBUTES)) and " ".join(names) == ROWS["image_text", "text", True]

    def test_a_task_that_was_never_trained_is_composed_of_the_same_bits(self):
        """Captions of videos are asked for as those of images are; both are vision, so what was learnt of the one serves."""
        model = model_with("attribute")
        found = model.condition("text", attributes=segment_attributes("text", CAPTIONS, target=False))
        assert found.known.sum() == len(CAPTION_ROWS["text"].split())
        encoding = model.encode("text", text_inputs([3, 5], 6), condition=found)
        trained = model.encode("text", text_inputs([3, 5], 6), condition=model.condition("text", "words"))
        assert (encoding.pooled_BD - trained.pooled_BD).abs().max() > 1e-3


class TestWhatTellsThem:
    def test_a_modality_gate_asks_for_nothing_else(self):
        model = model_with("modality")
        assert [model.condition(m).known.tolist() for m in ("vision", "audio", "text")] == [[0], [1], [2]]
        assert model(**audio_inputs(2)).audio_pooled.isfinite().all()

    def test_a_task_gate_has_an_id_for_each(self):
        model = model_with("task")
        assert [model.condition("text", task).known.item() for task in sorted(OBJECTIVES)] == [0, 1, 2, 3, 4]
        outputs = [model(**text_inputs([4], 5), task=task).text_pooled for task in ("words", "image_text")]
        assert (outputs[0] - outputs[1]).abs().max() > 1e-3

    def test_an_image_is_a_video_to_every_gate(self):
        """Its condition is that of its modality: nothing says how many frames there are."""
        for gate, task in (("modality", None), ("task", "image_text"), ("attribute", "image_text")):
            model = model_with(gate)
            condition = model.condition("vision", task)
            for inputs in (clip_inputs(2, 1, 2, 2), clip_inputs(2, 2, 2, 2)):
                expected = model.encode("vision", inputs, condition=condition).pooled_BD
                assert torch.equal(model(**inputs, task=task).vision_pooled, expected)

    @pytest.mark.parametrize("gate", ["token", "context"])
    def test_gates_of_tokens_do_without(self, gate):
        assert model_with(gate).condition("text", "anything").known is None

    def test_a_dense_encoder_does_without(self):
        assert small_model(gate="task").condition("text", "anything").known is None


REFUSED = {
    "a task that is needed": (
        "task", dict(), "(?s)task gates need the task.*no task.*film, image_class, image_text",
    ),
    "attributes that need it": ("attribute", dict(), "(?s)attribute gates need the task.*no task"),
    "an unknown task": ("task", dict(task="birds"), "(?s)task gates do not know this task.*got: +birds.*film, image_class"),
    "a task without attributes": ("attribute", dict(task="birds"), "(?s)do not know this task.*birds.*give the attributes"),
    "an unknown attribute": (
        "attribute", dict(task="birds", attributes=("input_smell", "token_text")),
        "(?s)task birds: unknown attribute.*got: +input_smell\n.*input_vision, input_audio",
    ),
    "an unknown attribute of no task": ("attribute", dict(attributes=("x",)), "a segment of text: unknown attribute"),
}  # fmt: skip


@pytest.mark.parametrize("gate, arguments, message", REFUSED.values(), ids=REFUSED.keys())
def test_what_no_gate_knows_is_refused(gate, arguments, message):
    with pytest.raises(UserError, match=message):
        model_with(gate).condition("text", **arguments)


@pytest.mark.parametrize("gate", ["task", "attribute"])
def test_an_encoder_that_without_a_task_raises(gate):
    model = model_with(gate)
    for call in (lambda: model(**text_inputs([3], 4)), lambda: model.encode("text", text_inputs([3], 4))):
        with pytest.raises(UserError, match=f"{gate} gates need the task"):
            call()


def test_an_objective_without_sides_names_its_task():
    with pytest.raises(UserError, match="(?s)task birds: an objective gives no queries and candidates.*got: +singing"):
        task_sides("birds", [{"kind": "singing"}])
