"""What a vision processor does with values, and images beside videos: seen by the model, not by shapes alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from imp_ds import ImpConfig, ImpModel, ImpProcessor
from imp_ds.errors import UserError
from imp_ds.modalities.text.tokenizers import train_tokenizer
from imp_ds.models.imp.feature_extraction_imp import ImpFeatureExtractor
from imp_ds.models.imp.image_processing_imp import ImpImageProcessor
from imp_ds.models.imp.video_processing_imp import ImpVideoProcessor

RNG = np.random.default_rng(0)
PICTURES = list(RNG.integers(0, 256, (3, 20, 30, 3), dtype=np.uint8))
VIDEOS = list(RNG.integers(0, 256, (2, 5, 20, 30, 3), dtype=np.uint8))
SIDES = {"image_processor": (PICTURES, 1), "video_processor": (VIDEOS, 2)}


@pytest.fixture(scope="module")
def processor():
    return ImpProcessor(
        ImpImageProcessor(size=16, patch=(2, 8, 8)),
        ImpVideoProcessor(frames=4, size=16, patch=(2, 8, 8)),
        ImpFeatureExtractor(seconds=0.5),
        train_tokenizer(["one two three"], 32, max_length=8),
    )


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = dict(vision_patch=(2, 8, 8), vision_max=(8, 32, 32), audio_max=(64, 128), vocab_size=32, common_dim=16)
    return ImpModel(ImpConfig.from_size("tiny", **sizes, pairs=[["vision", "text"]])).eval()


@torch.no_grad()
def test_scaled_by_the_processor_or_by_the_model_is_the_same(processor, model):
    for inputs in ({"images": PICTURES}, {"videos": VIDEOS}):
        own = processor(**inputs, do_rescale=True, do_normalize=True)
        raw = processor(**inputs)
        assert own["pixel_values"].dtype == torch.float32 and raw["pixel_values"].dtype == torch.uint8
        torch.testing.assert_close(model(**own).vision_pooled, model(**raw).vision_pooled, rtol=0, atol=1e-5)


@pytest.mark.parametrize("part", SIDES)
def test_factor_mean_and_spread_are_used_by_channel(processor, part):
    """Of 100, 150 and 200: half of each, less 10, 20 and 30, by 2, 4 and 5."""
    inputs, steps = SIDES[part]
    grey = [np.broadcast_to(np.array([100, 150, 200], dtype=np.uint8), each.shape) for each in inputs]
    settings = dict(do_rescale=True, rescale_factor=0.5, do_normalize=True, image_mean=[10, 20, 30], image_std=(2, 4, 5))
    values = getattr(processor, part)(grey, **settings)["pixel_values"]
    assert values.shape == (len(grey), 4 * steps, 192 * steps)
    np.testing.assert_allclose(values.reshape(-1, 3), np.broadcast_to([20, 13.75, 14], (values.size // 3, 3)))
    mean_alone = getattr(processor, part)(grey, do_normalize=True, image_mean=50, image_std=1.0)["pixel_values"]
    np.testing.assert_allclose(mean_alone.reshape(-1, 3)[0], [50, 100, 150])
    for wrong in ({"image_mean": [1, 2]}, {"image_std": 0.0}, {"image_mean": "grey"}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            getattr(processor, part)(grey, do_normalize=True, **wrong)


@pytest.mark.parametrize("part", SIDES)
def test_switches_are_stored(processor, part, tmp_path):
    one = getattr(processor, part)
    made = type(one)(size=16, patch=(2, 8, 8), keep_aspect=True, do_rescale=True, rescale_factor=2.0, image_mean=[1.0, 2.0, 3.0])
    made.save_pretrained(tmp_path)
    loaded = type(one).from_pretrained(tmp_path, do_normalize=True)
    assert (loaded.do_rescale, loaded.rescale_factor, loaded.image_mean) == (True, 2.0, [1.0, 2.0, 3.0])
    steps = 1 if part == "image_processor" else 8
    wide = loaded(np.zeros((steps, 16, 48, 3), dtype=np.uint8))["pixel_positions"]  # a row of 4 patches, not 2 x 2
    assert len({*wide[0, :4, 2].tolist()}) == 4 and len({*wide[0, :, 1].tolist()}) == 1
    assert loaded.do_normalize and not made.do_normalize and one.image_mean == [0.5] * 3


@pytest.mark.parametrize("part", SIDES)
def test_pictures_that_keep_their_size(processor, part):
    inputs, steps = SIDES[part]
    inputs = [each[..., :16, :24, :] for each in inputs]
    kept = getattr(processor, part)(inputs, do_resize=False)["pixel_values"]
    assert kept.shape == (len(inputs), 6 * steps, 192 * steps)
    assert (kept == getattr(processor, part)(inputs, size=(16, 24))["pixel_values"]).all()
    for wrong, named in (([inputs[0], inputs[1][..., :8, :, :]], "differ in size"), (inputs[0][..., :20, :], "does not divide")):
        with pytest.raises(UserError, match=named):
            getattr(processor, part)(wrong, do_resize=False)
    bounded = type(getattr(processor, part))(patch=(2, 8, 8), largest=(16, 16))
    with pytest.raises(UserError, match="larger than the model"):
        bounded(inputs, do_resize=False)


def test_pictures_that_are_no_rgb_are_refused_when_asked(processor):
    assert processor(PICTURES, do_convert_rgb=False)["pixel_values"].shape == (3, 4, 192)
    grey = PICTURES[0][..., 0]
    for wrong in (grey, Image.fromarray(grey), np.concatenate([PICTURES[0], grey[..., None]], -1)):
        with pytest.raises(UserError, match="not RGB"):
            processor(wrong, do_convert_rgb=False)
    with pytest.raises(UserError, match="not RGB"):
        processor(videos=VIDEOS[0][..., :1], do_convert_rgb=False)


@torch.no_grad()
def test_images_and_videos_at_once_are_each_what_they_are_alone(processor, model):
    both = processor(PICTURES, ["one", "two"], VIDEOS)
    assert both["pixel_values"].shape == (3, 4, 192) and both["pixel_values_videos"].shape == (2, 8, 384)
    out = model(**both)
    alone = {"images": PICTURES}, {"videos": VIDEOS}, {"text": ["one", "two"]}
    images, videos, texts = (model(**processor(**inputs)) for inputs in alone)
    assert torch.equal(out.vision_pooled, images.vision_pooled) and torch.equal(out.videos_pooled, videos.vision_pooled)
    expected = {
        "vision_to_text": images.embeddings["vision_to_text"], "videos_to_text": videos.embeddings["vision_to_text"],
        "text_to_vision": texts.embeddings["text_to_vision"],
    }  # fmt: skip
    assert out.embeddings.keys() == expected.keys()
    for name, vectors in expected.items():
        torch.testing.assert_close(out.embeddings[name], vectors)
    without = model(**{name: value for name, value in both.items() if name != "pixel_positions_videos"})
    assert torch.equal(without.videos_pooled, out.videos_pooled)  # a square video's positions follow


def test_tensors_by_group(processor):
    out = processor(PICTURES, "one", images_kwargs={"return_tensors": "np"})
    assert type(out["pixel_values"]) is np.ndarray and type(out["input_ids"]) is torch.Tensor
    assert type(processor(text="one", return_tensors="np", common_kwargs={"return_tensors": "np"})["input_ids"]) is np.ndarray
    with pytest.raises(UserError, match="given twice"):
        processor(text="one", return_tensors="np", common_kwargs={"return_tensors": "pt"})


def test_a_tokenizer_that_was_loaded_with_padding_keeps_it_and_one_that_was_used_does_not(processor, tmp_path):
    processor(text="one two three", max_length=3)  # the library writes this length into tokenizer.json
    processor.save_pretrained(tmp_path)
    lengths = [
        ImpProcessor.from_pretrained(tmp_path, **given)(text="one")["input_ids"].shape[1]
        for given in ({}, {"padding": "max_length", "max_length": 5})
    ]
    assert lengths == [8, 5]
