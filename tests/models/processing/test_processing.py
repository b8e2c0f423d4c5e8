"""ImpProcessor and its parts: every kind of input, saving and loading, the tokenizer."""

import json

import numpy as np
import pytest
import sentencepiece
import torch
from PIL import Image
from tokenizers import Tokenizer, models
from transformers import AutoFeatureExtractor, AutoProcessor, AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

from imp_ds import ImpConfig, ImpModel, ImpProcessor
from imp_ds.errors import UserError
from imp_ds.modalities.text import tokenizers
from imp_ds.modalities.text.tokenizers import from_sentencepiece, load_tokenizer, train_sentencepiece, train_tokenizer
from imp_ds.modalities.vision import patches as vision
from imp_ds.models.imp.feature_extraction_imp import ImpFeatureExtractor
from imp_ds.models.imp.image_processing_imp import ImpImageProcessor
from imp_ds.models.imp.video_processing_imp import ImpVideoProcessor

LOG_MEL = dict(frame_length=400, hop_length=160, mel_bins=64)
WORDS = "zero one two three four five six seven eight nine".split()
STARTS, WAYS = ("A photo of", "Someone says", "This is"), ("small", "moving left")
CAPTIONS = [f"{start} the digit {word}, {way}." for start in STARTS for way in WAYS for word in WORDS]
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
VIDEO = RNG.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def processor():
    return ImpProcessor(
        ImpImageProcessor(size=32, patch=(4, 8, 8)),
        ImpVideoProcessor(frames=8, size=(32, 32), patch=(4, 8, 8)),
        ImpFeatureExtractor(log_mel=LOG_MEL, seconds=1.0, mean=-4.0, std=3.0, do_normalize=True),
        train_tokenizer(CAPTIONS, 64, max_length=16),
    )


def sample_inputs(processor):
    """Inputs of all four modalities."""
    wave = np.sin(np.arange(12000) / 9).astype(np.float32)
    return {
        **processor([IMAGE, IMAGE[::-1]], ["This is the digit two", "nine"], audio=[wave, wave[:5000]], sampling_rate=16000),
        "film": processor(videos=VIDEO)["pixel_values"],
    }


def test_one_call_gives_the_inputs_of_the_model(processor):
    out = sample_inputs(processor)
    assert out["pixel_values"].shape == (2, 16, 192) and out["pixel_values"].dtype == torch.uint8
    assert out["pixel_positions"].shape == (2, 16, 3) and out["pixel_positions"].dtype == torch.float32
    assert out["input_features"].shape == (2, 28, 256) and out["feature_positions"].shape == (2, 28, 2)
    assert out["input_ids"].shape == out["attention_mask"].shape and out["input_ids"].dtype == torch.int64
    assert out["film"].shape == (1, 32, 768)
    assert processor.model_input_names == [
        "pixel_values", "pixel_positions", "input_features", "feature_positions",
        "pixel_values_videos", "pixel_positions_videos", "input_ids", "attention_mask",
    ]  # fmt: skip


def test_the_model_takes_what_the_processor_gives(processor):
    sizes = dict(vision_patch=(4, 8, 8), vision_max=(64, 64, 64), audio_max=(112, 64), vocab_size=64, common_dim=16)
    config = ImpConfig.from_size("tiny", **sizes)
    inputs = processor(images=IMAGE, text="nine", audio=np.ones(9000, np.float32), sampling_rate=8000)
    with torch.no_grad():
        out = ImpModel(config)(**inputs)
    assert {k: tuple(v.shape) for k, v in out.items() if k.endswith("pooled")} == {
        "vision_pooled": (1, 128), "audio_pooled": (1, 128), "text_pooled": (1, 128),
    }  # fmt: skip


def test_save_and_load_give_the_same_inputs(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    before = sample_inputs(processor)
    for loaded in (ImpProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is ImpProcessor
        after = sample_inputs(loaded)
        assert set(after) == set(before)
        for name in before:
            torch.testing.assert_close(after[name], before[name], rtol=0, atol=0)
        assert loaded.feature_extractor.to_dict() == processor.feature_extractor.to_dict()
        assert loaded.video_processor.to_dict() == processor.video_processor.to_dict()
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["image_processor"]["size"] == {"height": 32, "width": 32}
    assert saved["feature_extractor"]["log_mel"]["mel_bins"] == 64


def test_each_part_saves_and_loads_alone(processor, tmp_path):
    parts = ("image_processor", "video_processor", "feature_extractor")
    for part, auto in zip(parts, (AutoImageProcessor, AutoVideoProcessor, AutoFeatureExtractor)):
        folder = tmp_path / part
        one = getattr(processor, part)
        one.save_pretrained(folder)
        for loaded in (type(one).from_pretrained(folder), auto.from_pretrained(folder)):
            assert type(loaded) is type(one) and loaded.to_dict() == one.to_dict()


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(IMAGE),
        IMAGE.astype(np.float32) / 255,
        IMAGE.astype(np.int64),
        IMAGE.transpose(2, 0, 1),
        torch.from_numpy(IMAGE),
        np.concatenate([IMAGE, np.full((32, 32, 1), 255, np.uint8)], -1),
        IMAGE[None],
        [IMAGE],
    ],
    ids=["PIL", "float", "int64", "channels_first", "tensor", "alpha", "batch", "list"],
)
def test_every_kind_of_image_gives_the_same_pixels(image, processor):
    expected = processor.image_processor([IMAGE])["pixel_values"]
    np.testing.assert_array_equal(processor.image_processor(image)["pixel_values"], expected)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "CMYK", "LA", "I;16", "F"])
def test_every_mode_of_image_becomes_rgb(mode, processor):
    image = Image.fromarray(IMAGE[..., 0].astype(np.uint16) * 256) if mode == "I;16" else Image.fromarray(IMAGE).convert(mode)
    values = processor.image_processor(image)["pixel_values"]
    assert values.shape == (1, 16, 192)
    if mode == "I;16":
        grey = np.repeat(IMAGE[None, ..., :1], 3, -1)
        np.testing.assert_array_equal(values[0], vision.preprocess([grey], 1, (32, 32), (4, 8, 8))["pixel_values"][0])


@pytest.mark.parametrize(
    "film",
    [
        VIDEO.transpose(0, 3, 1, 2),
        list(VIDEO),
        [Image.fromarray(frame) for frame in VIDEO],
        [VIDEO],
        VIDEO[None],
        VIDEO.astype(np.float32) / 255,
        [list(VIDEO)],
    ],
    ids=["channels_first", "frames", "PIL", "batch", "array_batch", "float", "batch_of_frames"],
)
def test_every_kind_of_video_gives_the_same_pixels(film, processor):
    expected = processor.video_processor(VIDEO)["pixel_values"]
    np.testing.assert_array_equal(processor.video_processor(film)["pixel_values"], expected)


def test_a_grey_video_and_other_numbers_of_frames(processor):
    grey = processor.video_processor(VIDEO[..., 0])["pixel_values"]
    np.testing.assert_array_equal(grey, processor.video_processor(np.repeat(VIDEO[..., :1], 3, -1))["pixel_values"])
    assert processor.video_processor(VIDEO[:5], frames=4, size=(16, 24))["pixel_values"].shape == (1, 6, 768)


def test_keywords_of_a_task_override_what_is_stored(processor):
    rng = np.random.default_rng(0)
    out = processor.image_processor([IMAGE, IMAGE], size=(64, 32), drop_rate=0.5, rng=rng, return_tensors="pt")
    assert out["pixel_values"].shape == (2, 16, 192)
    out = processor.feature_extractor([np.ones(100, np.float32)], sampling_rate=16000, seconds=0.5, drop_rate=0.5, rng=rng)
    assert out["input_features"].shape == (1, 8, 256)  # 50 frames, rounded up to 64: 4 x 4 patches, half of them


def test_recordings_as_stereo_list_or_mixed_rates(processor):
    wave = np.sin(np.arange(8000) / 5).astype(np.float32)
    mono = processor.feature_extractor(wave, sampling_rate=16000)["input_features"]
    for same in (np.stack([wave, wave]), np.stack([wave, wave], 1), wave.tolist(), torch.from_numpy(wave), [wave]):
        np.testing.assert_allclose(processor.feature_extractor(same, sampling_rate=16000)["input_features"], mono, atol=1e-5)
    both = processor.feature_extractor([wave, wave[:4000]], sampling_rate=[16000, 8000])["input_features"]
    np.testing.assert_allclose(both[0], mono[0], atol=1e-5)


@pytest.mark.parametrize(
    "call",
    [
        lambda p: p(),
        lambda p: p(images="picture.png"),
        lambda p: p(images=[]),
        lambda p: p(images=np.zeros((2, 2, 2, 2, 2))),
        lambda p: p(images=np.zeros((32, 32, 5), np.uint8)),
        lambda p: p(images=np.full((32, 32, 3), 300)),
        lambda p: p(images=np.full((32, 32, 3), np.nan)),
        lambda p: p(images=np.full((32, 32), 1.5)),
        lambda p: p(images=IMAGE, images_kwargs=dict(size=30)),
        lambda p: p(images=IMAGE, images_kwargs=dict(size=(0, 32))),
        lambda p: p(videos="film.mp4"),
        lambda p: p(videos=IMAGE),
        lambda p: p(videos=[]),
        lambda p: p(videos=[Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))]),
        lambda p: p(videos=VIDEO, videos_kwargs=dict(frames=6)),
        lambda p: p(audio=np.ones(100)),
        lambda p: p(audio=np.ones(100), sampling_rate="16 kHz"),
        lambda p: p(audio=[], sampling_rate=16000),
        lambda p: p(audio=[np.ones(9), np.ones(9)], sampling_rate=[16000]),
        lambda p: p(audio="sound.wav", sampling_rate=16000),
        lambda p: p(audio=np.array([np.inf, 0.0]), sampling_rate=16000),
        lambda p: p(text=3),
        lambda p: p(text=""),
        lambda p: ImpFeatureExtractor(log_mel=dict(bins=3)),
        lambda p: ImpFeatureExtractor(log_mel=LOG_MEL, sampling_rate=8000),
        lambda p: ImpProcessor(p.video_processor, p.image_processor, p.feature_extractor, p.tokenizer),
    ],
)
def test_what_cannot_be_used_is_refused_in_words(call, processor):
    with pytest.raises(UserError):
        call(processor)


TEXTS = [
    "A photo of the digit seven, moving left.", "someone   SAYS\tnine ", "Unknown: żółw 漢字 ½ e\u0301", "two,two.two", "x",
    "", "ﬁve (Ｆive)", "☃☃ digit",
]  # fmt: skip


def test_token_ids_equal_sentencepiece(tmp_path):
    model = train_sentencepiece(CAPTIONS, 64)
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)
    tokenizer = from_sentencepiece(model)
    assert tokenizer.vocab_size == reference.vocab_size() <= 64
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id) == (reference.pad_id(), reference.unk_id()) == (0, 1)
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)):
        assert [one(text)["input_ids"] for text in TEXTS + CAPTIONS] == [reference.encode(text) for text in TEXTS + CAPTIONS]
    assert tokenizer.decode(tokenizer(CAPTIONS[0])["input_ids"]) == CAPTIONS[0].lower()


def test_training_is_deterministic_and_fits_small_corpora():
    assert train_sentencepiece(CAPTIONS, 64, seed=3) == train_sentencepiece(iter(CAPTIONS), 64, seed=3)
    assert train_tokenizer(["one", "two"], 8000).vocab_size < 24
    with pytest.raises(UserError, match="no captions"):
        train_tokenizer(["", " "], 100)
    with pytest.raises(UserError, match="vocab_size=4"):
        train_tokenizer(CAPTIONS, 4)


def test_any_tokenizer_loads_by_path_and_gets_a_padding_token(processor, tmp_path):
    processor.tokenizer.save_pretrained(tmp_path / "ours")
    assert load_tokenizer(str(tmp_path / "ours"))("nine")["input_ids"] == processor.tokenizer("nine")["input_ids"]
    words = Tokenizer(models.WordLevel({"[unk]": 0, "</s>": 1, "nine": 2}, unk_token="[unk]"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>").save_pretrained(tmp_path / "eos")
    assert load_tokenizer(str(tmp_path / "eos")).pad_token_id == 1
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "bare")
    for wrong in ("bare", "missing"):
        with pytest.raises(UserError):
            load_tokenizer(str(tmp_path / wrong))


def test_a_tokenizer_that_is_nowhere_is_refused_without_waiting_for_the_hub(monkeypatch):
    """The hub's client would try again for a minute."""
    asked = []

    class Session:
        def head(self, address, timeout):
            asked.append((address, timeout))
            raise ConnectionError

    monkeypatch.setattr(tokenizers, "get_session", Session)
    monkeypatch.setattr(tokenizers.foreign_code, "load", lambda *_, **more: pytest.fail("the hub was asked"))
    for name in ("./runs/tok", "/runs/tok", "runs/tok/x", "no such"):
        with pytest.raises(UserError, match="no such folder, and no name of the hub's"):
            load_tokenizer(name)
    assert not asked
    with pytest.raises(UserError, match=r"(?s)runs/tok: no such folder, and https.* cannot be reached.*data.tokenizer=FOLDER"):
        load_tokenizer("runs/tok")
    assert len(asked) == 1 and asked[0][1] <= 10
