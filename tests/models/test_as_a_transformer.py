"""What a user of transformers expects of any model, of ImpModel: keywords, outputs of layers, positions, the vocabulary.

transformers' own tests of it, where they can be had, are in common/. Shapes: B batch, L tokens, D width.
"""

import pytest
import torch
from torch import nn
from transformers import AutoModel, pipeline

from helpers.small_model import EXPERTS, assert_near, audio_inputs, clip_inputs, small_config, small_model, text_inputs
from imp_ds import ImpForPreTraining, ImpModel
from imp_ds.errors import UserError
from imp_ds.modalities.text.tokens import TokenTable
from imp_ds.objectives import task_entry
from imp_ds.tasks import Batch

INPUTS = {"vision": clip_inputs(2, 2, 3, 3), "audio": audio_inputs(2), "text": text_inputs([5, 8], 9)}
LENGTHS = {"vision": 18, "audio": 16, "text": 9}


class TestForward:
    def test_an_unknown_keyword_is_an_error(self):
        model, inputs = small_model(), text_inputs([5], 9)
        with pytest.raises(TypeError, match="attention_masks"):
            model(input_ids=inputs["input_ids"], attention_masks=inputs["attention_mask"])

    @pytest.mark.parametrize("changes", [{}, EXPERTS, dict(prompt_length=2)])
    @pytest.mark.parametrize("modality", INPUTS)
    def test_what_the_layers_give(self, modality, changes):
        model, length = small_model(**changes), LENGTHS[modality]
        with torch.no_grad():
            plain, found = model(**INPUTS[modality]), model(**INPUTS[modality], output_hidden_states=True, output_attentions=True)
        assert plain.hidden_states is None and plain.attentions is None
        assert [tuple(x.shape) for x in found.hidden_states] == [(2, length, 32)] * 4  # the input, and three layers
        seen = length + changes.get("prompt_length", 0)
        assert [tuple(x.shape) for x in found.attentions] == [(2, 4, length, seen)] * 3
        for weights in found.attentions:
            assert_near(weights.sum(-1), torch.ones(2, 4, length))
        assert_near(found[f"{modality}_pooled"], plain[f"{modality}_pooled"])
        tokens_BLD = model.post_encoder[modality](model.norm(found.hidden_states[-1]))  # the last is that of the last layer
        assert_near(model.encode(modality, INPUTS[modality]).tokens_BLD, tokens_BLD, 1e-4)

    def test_nobody_attends_to_padding(self):
        found = small_model()(**INPUTS["text"], output_attentions=True).attentions
        assert all(weights[0, :, :, 5:].max() == 0 and weights[0, :, :, :5].min() > 0 for weights in found)

    def test_several_modalities_have_theirs_by_name(self):
        found = small_model()(**INPUTS["vision"], **INPUTS["text"], output_hidden_states=True).hidden_states
        assert {modality: states[0].shape[1] for modality, states in found.items()} == {"vision": 18, "text": 9}

    def test_the_configuration_decides_what_nobody_says(self):
        model = small_model()
        model.set_attn_implementation("eager")
        model.config.output_attentions = model.config.output_hidden_states = True
        assert model(**INPUTS["text"]).attentions and model(**INPUTS["text"]).hidden_states

    def test_a_tuple_instead_of_names(self):
        model = small_model()
        named, unnamed = model(**INPUTS["text"]), model(**INPUTS["text"], return_dict=False)
        assert isinstance(unnamed, tuple) and torch.equal(unnamed[0], named.text_pooled)

    @pytest.mark.parametrize("changes", [{}, dict(qk_norm=True), dict(prompt_length=2)])
    def test_eager_attention_is_the_same(self, changes):
        model = small_model(**changes)
        found = [model(**inputs) for inputs in INPUTS.values()]
        model.set_attn_implementation("eager")
        for modality, inputs, before in zip(INPUTS, INPUTS.values(), found):
            assert_near(model(**inputs)[f"{modality}_pooled"], before[f"{modality}_pooled"])


class TestPositions:
    @pytest.mark.parametrize("steps", [2, 3])
    def test_those_of_a_video(self, steps):
        """18 = 2 x 3 x 3 and 27 = 3 x 3 x 3 patches have one square each; tables of 4 steps, 8 rows and 8 columns."""
        inputs = clip_inputs(2, steps, 3, 3)
        assert_near(small_model()(pixel_values=inputs["pixel_values"]).vision_pooled, small_model()(**inputs).vision_pooled, 0)

    def test_those_of_a_picture(self):
        inputs = clip_inputs(2, 1, 4, 4)
        one_frame = {**inputs, "pixel_values": inputs["pixel_values"][..., :48]}
        derived = small_model()(pixel_values=one_frame["pixel_values"]).vision_pooled
        assert_near(derived, small_model()(**one_frame).vision_pooled, 0)

    def test_those_of_a_recording(self):
        inputs = audio_inputs(2, steps=5)
        derived = small_model()(input_features=inputs["input_features"]).audio_pooled
        assert_near(derived, small_model()(**inputs).audio_pooled, 0)

    @pytest.mark.parametrize(
        "name, patches, values, message",
        [
            ("pixel_values", 12, 48, "12 patches, which make no square"),  # a picture of 3 x 4, or some of a larger one
            ("pixel_values", 16, 96, "16 patches, which make 1x4x4 or 4x2x2"),
            ("input_features", 15, 16, "multiples of 4"),
        ],
    )
    def test_what_cannot_be_derived_is_asked_for(self, name, patches, values, message):
        with pytest.raises(UserError, match=message):
            small_model()(**{name: torch.zeros(1, patches, values)})


class TestVocabulary:
    def test_the_table_is_the_input_embedding(self):
        model = small_model()
        assert model.get_input_embeddings() is model.embeddings["text"].words
        table = nn.Embedding(50, 32)
        model.set_input_embeddings(table)
        assert model.embeddings["text"].words is table and isinstance(table, TokenTable)
        assert model.score_tokens(torch.ones(2, 32)).shape == (2, 50)

    @pytest.mark.parametrize("count", [58, 40])
    def test_resized(self, count, tmp_path):
        model, inputs = small_model(), text_inputs([5, 8], 9)
        inputs["input_ids"] %= 40
        before = model(**inputs).text_pooled
        found = model.resize_token_embeddings(count)
        assert found is model.get_input_embeddings() and found.weight.shape == (count, 32) and model.config.vocab_size == count
        assert torch.equal(model(**inputs).text_pooled, before)
        assert model.score_tokens(torch.ones(2, 32)).shape == (2, count)
        model.save_pretrained(tmp_path)
        assert torch.equal(AutoModel.from_pretrained(tmp_path).eval()(**inputs).text_pooled, before)

    def test_the_heads_over_the_vocabulary_follow(self, tmp_path):
        likelihood = dict(kind="likelihood", inputs=["text"], target="text", candidates="vocabulary", family="word", rate=0.15)
        objectives = {
            "plain": task_entry([{"kind": "masked_language", "rate": 0.15}]),
            "among": task_entry([likelihood]),
        }
        torch.manual_seed(0)
        model = ImpForPreTraining(small_config(objectives=objectives, mask_token_id=49)).eval()
        head = model.objectives["plain"].parts[0].head
        with torch.no_grad():
            head.bias.copy_(torch.arange(50.0))
        model.resize_token_embeddings(53)
        assert head.bias.tolist() == [*map(float, range(50)), 0.0, 0.0, 0.0]
        ids_BL = torch.randint(1, 49, (2, 9))
        labels_BL = torch.full_like(ids_BL, -100)
        labels_BL[:, 3] = 52  # a word that was not there
        for task in objectives:
            inputs = {"input_ids": ids_BL, "attention_mask": torch.ones_like(ids_BL)}
            batch = Batch(task, {"text": inputs}, {"token_ids": labels_BL})
            assert model(batch)[0].isfinite()
        model.save_pretrained(tmp_path)
        again = ImpForPreTraining.from_pretrained(tmp_path)
        assert again.config.vocab_size == 53 and torch.equal(again.objectives["plain"].parts[0].head.bias, head.bias)

    def test_no_token_that_the_model_needs_is_lost(self):
        with pytest.raises(UserError, match="50 at least"):
            small_model(mask_token_id=49).resize_token_embeddings(49)


def test_the_pipeline_of_features(tmp_path):
    """Its model may have what a tokenizer makes; the first output is the pooled text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = Tokenizer(models.WordLevel({"[PAD]": 0, "a": 1, "photo": 2}, unk_token="[PAD]"))
    vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=vocabulary, pad_token="[PAD]", model_input_names=["input_ids", "attention_mask"]
    )
    model = small_model()
    (found,) = pipeline("feature-extraction", model=model, tokenizer=tokenizer, framework="pt")("a photo")
    assert_near(torch.tensor(found), model(input_ids=torch.tensor([[1, 2]])).text_pooled[0])


def test_auto_model_knows_it():
    assert isinstance(AutoModel.from_config(small_config()), ImpModel)
