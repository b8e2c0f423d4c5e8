"""One vector for an item: `get_features` and its four namesakes.

Shapes: B batch, C width of a common space, D width.
"""

import pytest
import torch
import torch.nn.functional as F

from helpers.small_model import (
    EXPERTS,
    GATED,
    OBJECTIVES,
    assert_near,
    audio_inputs,
    clip_inputs,
    small_model,
    text_inputs,
)
from imp_ds.errors import UserError
from imp_ds.models.imp.likelihood import encode_with_spe
from imp_ds.objectives import task_entry

INPUTS = {"vision": clip_inputs(6, 2, 3, 3), "audio": audio_inputs(6), "text": text_inputs([5, 8, 1, 3, 9, 2], 9)}
PAIRS = [("vision", "text"), ("vision", "audio"), ("audio", "text")]


def vectors(model, **options) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return {modality: model.get_features(modality, **INPUTS[modality], **options).pooler_output for modality in INPUTS}


def contrastive(*pairs) -> dict:
    return task_entry([{"kind": "contrastive", "pairs": [list(pair) for pair in pairs]}])


class TestBlocks:
    @pytest.mark.parametrize("changes", [{}, EXPERTS])
    def test_three_pairs_by_hand(self, changes):
        """Each modality is one side of two of three pairs: its two blocks are unit vectors divided by sqrt(2), and so the cosine
        of two modalities is half of that of their pair."""
        model = small_model(**changes)
        with torch.no_grad():
            pairs = model(**INPUTS["vision"], **INPUTS["audio"], **INPUTS["text"]).embeddings
        found = vectors(model)
        for place, (a, b) in enumerate(PAIRS):
            block = slice(24 * place, 24 * place + 24)
            assert_near(found[a][:, block] * 2**0.5, pairs[f"{a}_to_{b}"])
            assert_near(found[b][:, block] * 2**0.5, pairs[f"{b}_to_{a}"])
            (other,) = INPUTS.keys() - {a, b}
            assert found[other].shape == (6, 72) and not found[other][:, block].any()
            cosine_BB, pair_BB = found[a] @ found[b].T, pairs[f"{a}_to_{b}"] @ pairs[f"{b}_to_{a}"].T
            assert_near(cosine_BB, pair_BB / 2)
            assert torch.equal(cosine_BB.argsort(1), pair_BB.argsort(1)) and torch.equal(cosine_BB.argsort(0), pair_BB.argsort(0))
        for vector_BC in found.values():
            assert vector_BC.dtype == torch.float32
            assert_near(vector_BC.norm(dim=1), torch.ones(6))

    def test_pairs_that_no_task_trains_have_no_block(self):
        """Two pairs are trained. Text fills both blocks, the others one: cosine = pair / (sqrt(2) sqrt(1))."""
        objectives = {"speech": contrastive(("audio", "text")), "image": contrastive(("vision", "text"))}
        model = small_model(objectives=objectives)
        found = vectors(model)
        assert {modality: tuple(vector_BC.shape) for modality, vector_BC in found.items()} == dict.fromkeys(INPUTS, (6, 48))
        with torch.no_grad():
            pairs = model(**INPUTS["vision"], **INPUTS["text"]).embeddings
        assert_near(found["vision"] @ found["text"].T, pairs["vision_to_text"] @ pairs["text_to_vision"].T / 2**0.5)
        assert not (found["vision"] @ found["audio"].T).any()  # never compared

    @pytest.mark.parametrize("gate", ["task", "attribute"])
    def test_gates_have_the_condition_of_the_task_that_compares_the_pair(self, gate):
        model = small_model(**GATED, gate=gate)
        found = vectors(model)["text"]
        for place, (task, other) in {0: ("film", "vision"), 2: ("speech_text", "audio")}.items():
            with torch.no_grad():
                expected = model(**INPUTS["text"], task=task).embeddings[f"text_to_{other}"]
            assert_near(found[:, 24 * place : 24 * place + 24] * 2**0.5, expected)
        with torch.no_grad():
            told = model.get_text_features(**INPUTS["text"], task="speech_text").pooler_output
            expected = model(**INPUTS["text"], task="speech_text").embeddings["text_to_vision"]
        assert_near(told[:, :24] * 2**0.5, expected)

    @pytest.mark.parametrize("gate", ["task", "attribute"])
    def test_the_order_of_tasks_does_not_matter(self, gate):
        """config.json has them by name: a model that is saved and loaded gives the same."""
        shared = contrastive(("vision", "text"), ("audio", "text"))
        objectives = {"zebra": shared, "ape": OBJECTIVES["image_text"]}
        models = [
            small_model(**{**GATED, "objectives": order}, gate=gate, gate_tasks=["ape", "zebra"] if gate == "task" else None)
            for order in (objectives, dict(reversed(objectives.items())))
        ]
        first, second = map(vectors, models)
        assert all(torch.equal(first[modality], second[modality]) for modality in INPUTS)

    def test_an_example_depends_on_no_other(self):
        model = small_model(**EXPERTS)
        together = vectors(model)["text"]
        with torch.no_grad():
            alone = model.get_text_features(**{name: value[1:2] for name, value in INPUTS["text"].items()}).pooler_output
        assert_near(alone, together[1:2])


class TestWithoutPairs:
    def test_pooled_tokens_of_length_one(self):
        model = small_model(objectives={"image_class": OBJECTIVES["image_class"]})
        found = model.get_image_features(**INPUTS["vision"])
        assert_near(found.pooler_output, F.normalize(model(**INPUTS["vision"]).vision_pooled, dim=-1))

    def test_a_modality_without_a_pair_beside_others(self):
        model = small_model(objectives={"image": contrastive(("vision", "text"))})
        assert_near(vectors(model)["audio"], F.normalize(model(**INPUTS["audio"]).audio_pooled, dim=-1))

    def test_the_likelihood_heads_vector(self):
        """Its cosine times the family's scale is the logit of a query and a candidate."""
        spec = dict(kind="likelihood", inputs=["vision"], target="text", candidates="batch", family="caption")
        model = small_model(
            objectives={"captions": task_entry([spec])}, mask_token_id=49, prompt_length=2, candidate_prompts="separate"
        )
        found = vectors(model)
        with torch.no_grad():
            of = lambda modality, target: (modality, model.condition(modality, "captions", target=target))  # noqa: E731
            query, candidate = (
                model.likelihood(encode_with_spe(model, [(modality, INPUTS[modality], condition)]).pooled_BD)
                for modality, condition in [of("vision", False), of("text", True)]
            )
            expected = model.likelihood.logits(query, candidate, "caption")
        assert_near(found["vision"] @ found["text"].T * model.likelihood.scale("caption"), expected, 1e-4)


class TestCalling:
    def test_what_comes_back(self):
        model = small_model()
        found = model.get_text_features(**INPUTS["text"], output_hidden_states=True, output_attentions=True)
        assert_near(found.last_hidden_state, model.encode("text", INPUTS["text"]).tokens_BLD)
        assert len(found.hidden_states) == 4 and len(found.attentions) == 3
        plain = model.get_text_features(**INPUTS["text"], return_dict=False)
        assert isinstance(plain, tuple) and len(plain) == 2
        assert_near(plain[1], found.pooler_output)  # attention weights are computed by another formula

    def test_each_name_is_its_modality(self):
        model = small_model()
        named = vectors(model)
        assert torch.equal(model.get_image_features(**INPUTS["vision"]).pooler_output, named["vision"])
        assert torch.equal(model.get_video_features(**INPUTS["vision"]).pooler_output, named["vision"])
        videos = {f"{name}_videos": value for name, value in INPUTS["vision"].items()}
        assert torch.equal(model.get_video_features(**videos).pooler_output, named["vision"])
        assert torch.equal(model.get_audio_features(INPUTS["audio"]["input_features"]).pooler_output, named["audio"])
        assert torch.equal(model.get_text_features(**INPUTS["text"]).pooler_output, named["text"])

    def test_a_further_modality(self):
        """Sensors of 5 steps x 3 channels a patch, compared with texts: the fourth block."""
        pairs = [*PAIRS, ("sensors", "text")]
        model = small_model(modalities=["vision", "audio", "text", "sensors"], pairs=pairs, sensors_channels=3)
        values = torch.randn(2, 4, 15, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            found = model.get_features("sensors", sensor_values=values).pooler_output
            expected = model(sensor_values=values).embeddings["sensors_to_text"]
        assert not found[:, :72].any()
        assert_near(found[:, 72:], expected)

    def test_refusals(self):
        model = small_model()
        with pytest.raises(UserError, match="does not have this modality"):
            model.get_features("sensors", **INPUTS["text"])
        with pytest.raises(UserError, match="features of vision from other inputs"):
            model.get_features("vision", **INPUTS["text"])
        with pytest.raises(UserError, match="nothing to encode"):
            model.get_text_features()
        with pytest.raises(TypeError, match="input_idz"):
            model.get_features("text", input_idz=INPUTS["text"]["input_ids"])


class TestForward:
    """What `forward` gives by the names of transformers, beside its own."""

    @pytest.mark.parametrize("modality", INPUTS)
    def test_of_one_modality(self, modality):
        model = small_model()
        with torch.no_grad():
            found, features = model(**INPUTS[modality]), model.get_features(modality, **INPUTS[modality])
        assert torch.equal(found.pooler_output, features.pooler_output)
        assert torch.equal(found.last_hidden_state, features.last_hidden_state)
        assert found.logits_per_image is None and found.logits_per_text is None

    def test_logits_by_hand(self):
        """Cosines divided by the learned temperature; by 1 where the configuration has none, here of audio."""
        model = small_model(temperatures={"vision": 0.5})
        videos = {f"{name}_videos": value[:2] for name, value in INPUTS["vision"].items()}
        with torch.no_grad():
            found = model(**INPUTS["vision"], **videos, **INPUTS["audio"], **INPUTS["text"])
        pairs = found.embeddings
        images = pairs["vision_to_text"] @ pairs["text_to_vision"].T
        assert_near(found.logits_per_image, images / 0.5)
        assert_near(found.logits_per_video, images[:2] / 0.5)
        assert_near(found.logits_per_audio, pairs["audio_to_text"] @ pairs["text_to_audio"].T)
        assert_near(found.logits_per_text, found.logits_per_image.T)
        assert found.pooler_output is None and found.last_hidden_state is None

    def test_a_model_without_pairs(self):
        model = small_model(objectives={"image_class": OBJECTIVES["image_class"]})
        found = model(**INPUTS["vision"])
        assert torch.equal(found.pooler_output, model.get_image_features(**INPUTS["vision"]).pooler_output)


def test_the_first_values_of_each_block():
    """As unit vectors, in `forward` too; which a task has trained is known to the configuration."""
    record = {"kind": "contrastive", "pairs": [["vision", "text"]], "matryoshka": [6, 12]}
    model = small_model(objectives={"films": task_entry([record])})
    assert model.config.matryoshka == [6, 12]
    found = vectors(model, truncate_dim=6)
    with torch.no_grad():
        whole = model(**INPUTS["vision"], **INPUTS["text"]).embeddings
        cut = model(**INPUTS["vision"], **INPUTS["text"], truncate_dim=6).embeddings
    for name, value in whole.items():
        assert_near(cut[name], F.normalize(value[:, :6], dim=1))
    assert_near(found["vision"], cut["vision_to_text"])
    assert_near(found["audio"].norm(dim=1), torch.ones(6))  # of no pair: its pooled tokens
    with pytest.raises(UserError, match="1 to 24"):
        model.get_features("text", **INPUTS["text"], truncate_dim=25)
