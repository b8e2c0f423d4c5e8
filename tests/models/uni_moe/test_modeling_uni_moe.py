"""Uni-MoE: features in the places of their placeholders, text as by the base, generation as a full pass, folders bit for bit."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

from helpers.language_models import DENSE, SPARSE, language_model
from helpers.uni_moe_models import AUDIO, IMAGE, VIDEO, media, uni_moe, uni_moe_config
from imp_ds.errors import UserError
from imp_ds.models.uni_moe import UniMoeForConditionalGeneration

LANGUAGES = [*DENSE, *SPARSE]
PROMPTS = [[5, *[IMAGE] * 4, 6, 7], [8, *[AUDIO] * 5, 9, *[IMAGE] * 4, 10, 11, 12], [13, 14]]


def batch(rows=PROMPTS) -> dict[str, torch.Tensor]:
    """Padded on the left, with their media: an image of the first, a recording and an image of the second."""
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    found = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    images, clips = sum(row.count(IMAGE) for row in rows) // 4, sum(row.count(AUDIO) for row in rows) // 5
    return found | ({"pixel_values": media("image", images)} if images else {}) | (
        {"input_features": media("audio", clips)} if clips else {}
    )  # fmt: skip


@pytest.mark.parametrize("language", LANGUAGES)
def test_text_alone_gives_the_logits_of_the_base(language):
    base, model = language_model(language), uni_moe(language)
    if language in DENSE:
        model.language_model.load_state_dict(base.state_dict())
        ids = torch.randint(3, 30, (2, 7), generator=torch.Generator().manual_seed(0))
        assert torch.equal(model(ids).logits, base(ids).logits)
    else:  # experts of a sparse base: tests/models/uni_moe/test_experts.py compares them with transformers' own
        ids = torch.randint(3, 30, (2, 7))
        assert torch.equal(model(ids).logits, model.language_model(ids).logits)


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_cached_step_gives_the_logits_of_a_full_pass(language):
    model, given = uni_moe(language), batch()
    out = model.generate(
        **given, max_new_tokens=5, do_sample=False, eos_token_id=None, return_dict_in_generate=True, output_logits=True
    )
    ids = out.sequences
    mask = torch.cat([given["attention_mask"], torch.ones(3, 5, dtype=torch.int64)], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    full = model(ids, mask, positions, pixel_values=given["pixel_values"], input_features=given["input_features"]).logits
    steps = torch.stack(out.logits, 1)
    kept = torch.isfinite(steps)  # placeholders are suppressed
    torch.testing.assert_close(steps[kept], full[:, -6:-1][kept], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("language", LANGUAGES)
def test_padded_rows_of_a_batch_answer_as_alone(language):
    model, together = uni_moe(language), batch()
    images, clips = together["pixel_values"], together["input_features"]
    alone = [dict(pixel_values=images[:1]), dict(pixel_values=images[1:], input_features=clips), {}]
    for options in (dict(), dict(num_beams=3), dict(use_cache=False)):
        answers = model.generate(**together, max_new_tokens=5, do_sample=False, eos_token_id=None, **options)[:, -5:]
        for row, own, answer in zip(PROMPTS, alone, answers):
            ids = torch.tensor([row])
            single = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, eos_token_id=None, **own,
                **options,
            )  # fmt: skip
            assert single[0, -5:].tolist() == answer.tolist(), options


def test_generation_is_not_blind():
    model, given = uni_moe(), batch(PROMPTS[:1])
    other = given | {"pixel_values": 3 * media("image", 1, seed=9)}
    options = dict(max_new_tokens=2, do_sample=False, return_dict_in_generate=True, output_logits=True)
    logits = [model.generate(**g, **options, use_cache=cache).logits[1] for g in (given, other) for cache in (True, False)]
    shown = torch.isfinite(logits[0])
    torch.testing.assert_close(logits[0][shown], logits[1][shown])
    assert not torch.allclose(logits[1][shown], logits[3][shown], atol=1e-3)


def test_features_stand_in_the_order_of_the_text():
    """Two images and a recording between them: the embeddings at the placeholders are the connectors' outputs, in that order."""
    model = uni_moe()
    ids = torch.tensor([[*[IMAGE] * 4, 5, *[AUDIO] * 5, *[IMAGE] * 4], [6] * 10 + [IMAGE] * 4])
    images, clips = media("image", 3), media("audio", 1)
    features = model.encode_all({"pixel_values": images, "input_features": clips})
    embeds = model.embed(ids, features)
    states = [model.connectors["image"](features["image"][n : n + 1])[0] for n in range(3)]
    heard = model.connectors["audio"](features["audio"])[0]
    torch.testing.assert_close(embeds[0], torch.cat([states[0], model.get_input_embeddings()(ids[0, 4:5]), heard, states[1]]))
    torch.testing.assert_close(embeds[1, 10:], states[2])


def test_features_computed_before_serve_as_well():
    model, given = uni_moe(), batch()
    before = {
        "image": model.encode_media("image", given["pixel_values"]),
        "audio": model.encode_media("audio", given["input_features"]),
    }
    ids, mask = given["input_ids"], given["attention_mask"]
    assert torch.equal(model(**given).logits, model(ids, mask, mm_encoder_outputs=before).logits)
    options = dict(max_new_tokens=4, do_sample=False, num_beams=2)
    answer = model.generate(**given, **options)
    assert torch.equal(answer, model.generate(input_ids=ids, attention_mask=mask, mm_encoder_outputs=before, **options))


def test_placeholders_and_features_that_do_not_match_are_refused():
    model = uni_moe()
    with pytest.raises(UserError, match="3 placeholders.*\n.*1 x 4 features"):
        model(torch.tensor([[5, IMAGE, IMAGE, IMAGE]]), pixel_values=media("image", 1))
    with pytest.raises(UserError, match="reads no such media"):
        uni_moe(audio_config=None, connectors={}).encode_media("audio", media("audio", 1))


def test_no_answer_has_media_in_it():
    model = uni_moe()
    with torch.no_grad():
        model.get_output_embeddings().weight[[IMAGE, VIDEO, AUDIO]] += 10.0
    answer = model.generate(input_ids=torch.tensor([[5, 6, 7]]), max_new_tokens=8, do_sample=True)
    assert not set(answer[0].tolist()) & {IMAGE, VIDEO, AUDIO}


@pytest.mark.parametrize("language", ["llama", "qwen3", "mixtral"])
def test_saved_and_loaded_it_is_the_same(language, tmp_path):
    model = uni_moe(language, **({} if language == "mixtral" else {"num_experts": 3}))
    model.save_pretrained(tmp_path)
    for kind in (UniMoeForConditionalGeneration, AutoModelForMultimodalLM, AutoModelForCausalLM):
        again = kind.from_pretrained(tmp_path)
        assert type(again) is UniMoeForConditionalGeneration
        ours, theirs = model.state_dict(), again.state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_tied_embeddings_stay_tied(tmp_path):
    text = uni_moe_config().text_config
    text.tie_word_embeddings = True
    model = uni_moe(text_config=text)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    again = UniMoeForConditionalGeneration.from_pretrained(tmp_path)
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert torch.equal(again.get_input_embeddings().weight, model.get_input_embeddings().weight)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(towers={"image": "vision"}, connectors={}), "a tower without a connector"),
        (dict(towers={"image": "vision", "video": "video", "audio": "audio"}), "no tower that reads video"),
        (dict(connectors={"smell": {"kind": "linear"}}), "a connector without a tower"),
        (dict(connectors={"image": {"kind": "resampler"}}), "unknown kind of connector"),
    ],
)
def test_towers_and_connectors_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        uni_moe_config(**changes)
