"""ImpProcessor takes what processors of transformers take, by group or flat, and refuses by name what nothing takes."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from imp_ds import ImpProcessor
from imp_ds.errors import UserError
from imp_ds.modalities.decoding_settings import DecodingSettings
from imp_ds.modalities.media import Media
from imp_ds.modalities.text.tokenizers import train_tokenizer
from imp_ds.modalities.vision.image import read_image
from imp_ds.models.imp.feature_extraction_imp import ImpFeatureExtractor
from imp_ds.models.imp.image_processing_imp import ImpImageProcessor
from imp_ds.models.imp.video_processing_imp import ImpVideoProcessor

GROUND = (10, 200, 30)
TEXTS = ["one", "one two three four"]
PICTURE = np.random.default_rng(0).integers(0, 256, (16, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def processor():
    return ImpProcessor(
        ImpImageProcessor(size=(16, 8), patch=(1, 8, 8), ground=GROUND),
        ImpVideoProcessor(frames=2, size=(16, 8), patch=(2, 8, 8), ground=GROUND),
        ImpFeatureExtractor(seconds=0.5),
        train_tokenizer([f"{text} five six seven" for text in TEXTS], 64, max_length=12),
    )


def test_padding_and_truncation_of_texts(processor):
    def shape(**kwargs):
        return tuple(processor(text=TEXTS, **kwargs)["input_ids"].shape)

    length = max(len(ids) for ids in processor.tokenizer(TEXTS)["input_ids"])
    assert shape() == (2, 12)  # the length of training
    assert shape(padding=True) == shape(text_kwargs={"padding": "longest"}) == (2, length)
    assert shape(padding="max_length", max_length=9) == shape(text_kwargs={"max_length": 9}) == (2, 9)
    assert shape(padding=False, truncation=True, max_length=1) == (2, 1)
    with pytest.raises(UserError, match="different lengths"):
        shape(padding=False)
    with pytest.raises(UserError, match="different lengths"):
        shape(truncation=False, max_length=3)


def test_groups_and_flat_keywords_are_one(processor):
    out = processor([PICTURE], TEXTS, size=(8, 8), max_length=5, common_kwargs={"return_tensors": "np"})
    grouped = processor([PICTURE], TEXTS, images_kwargs={"size": (8, 8)}, text_kwargs={"max_length": 5}, return_tensors="np")
    assert type(out["pixel_values"]) is np.ndarray and out["pixel_values"].shape == (1, 1, 192)
    assert out.keys() == grouped.keys() and all((out[name] == grouped[name]).all() for name in out)
    wave = np.sin(np.arange(8000) / 9).astype(np.float32)
    flat, own = (processor(audio=wave, **keys) for keys in ({"sampling_rate": 8000}, {"audio_kwargs": {"sampling_rate": 8000}}))
    assert (flat["input_features"] == own["input_features"]).all()


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"paddding": True}, r"keyword of the processor.*got: +paddding.*did you mean padding"),
        ({"text_kwargs": {"max_lenght": 3}}, r"keyword of text_kwargs.*got: +max_lenght.*did you mean max_length"),
        ({"images_kwargs": {"frames": 3}}, r"keyword of images_kwargs.*got: +frames"),
        ({"common_kwargs": {"return_tensor": "pt"}}, r"common_kwargs.*did you mean return_tensors"),
        ({"text_kwargs": {"max_length": 3}, "max_length": 3}, r"given twice.*max_length in text_kwargs"),
        ({"text_kwargs": "longest"}, r"text_kwargs is no dictionary"),
        ({"max_length": -1}, r"max_length of text_kwargs.*got: +-1.*int or None, above 0"),
        ({"max_length": "3"}, r"max_length of text_kwargs.*got: +'3'"),
        ({"rescale_factor": "x"}, r"rescale_factor of the image processor.*got: +'x'.*float or None"),
        ({"do_resize": 1}, r"do_resize of the image processor.*bool or None"),
        ({"drop_rate": True}, r"drop_rate of the image processor"),
    ],
)
def test_what_nothing_takes_is_refused_by_name(processor, keywords, named):
    with pytest.raises(UserError, match=re.compile(named, re.DOTALL)):
        processor([PICTURE], TEXTS, **keywords)


def test_parts_refuse_by_name_too(processor):
    wave = np.zeros(8000, dtype=np.float32)
    for wrong in ({"seconds": "x"}, {"seconds": 0}, {"crop": 3}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))} of the feature extractor"):
            processor(audio=wave, sampling_rate=8000, **wrong)
    assert processor(PICTURE, rescale_factor=np.float32(1), do_rescale=np.True_, size=8)["pixel_values"].max() > 200
    for part, inputs in (("image_processor", PICTURE), ("video_processor", PICTURE[None]), ("feature_extractor", wave)):
        with pytest.raises(UserError, match="unknown keyword of the"):
            getattr(processor, part)(inputs, do_rezise=True)


def test_paths_bytes_and_layouts_are_the_same_picture(processor, tmp_path):
    path, file = tmp_path / "a.png", io.BytesIO()
    Image.fromarray(PICTURE).save(path)
    Image.fromarray(PICTURE).save(file, "PNG")
    expected = processor(PICTURE)["pixel_values"]
    for images in (path, str(path), [path], file.getvalue(), Image.open(path)):
        assert (processor(images)["pixel_values"] == expected).all()
    narrow = np.moveaxis(PICTURE[:, :3], -1, 0)  # [3, 16, 3]: its shape says nothing of its layout
    assert (
        processor(narrow, input_data_format="channels_first")["pixel_values"] == processor(PICTURE[:, :3])["pixel_values"]
    ).all()
    film = np.stack([narrow, narrow])
    first, last = processor(videos=film, input_data_format="channels_first"), processor(videos=[[PICTURE[:, :3]] * 2])
    assert (first["pixel_values"] == last["pixel_values"]).all()
    for wrong in (tmp_path / "absent.png", b"no picture"):
        with pytest.raises(UserError, match="cannot be read"):
            processor(wrong)
    with pytest.raises(UserError, match="unknown input_data_format"):
        processor(PICTURE, input_data_format="channels_left")
    with pytest.raises(UserError, match="the channels are not there"):
        processor(PICTURE, input_data_format="channels_first")


def test_orientation_and_ground_as_in_training(processor, tmp_path):
    """16 x 8 pixels, the left half transparent, the right red; EXIF 6 turns them clockwise, so that the left becomes the top: one
    patch of the ground above one of red. The decoder of training and the saved processor agree."""
    pixels = np.zeros((8, 16, 4), dtype=np.uint8)
    pixels[:, 8:] = (255, 0, 0, 255)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.png"
    Image.fromarray(pixels).save(path, exif=exif)

    processor.save_pretrained(tmp_path / "saved")
    saved = ImpProcessor.from_pretrained(tmp_path / "saved")
    training = read_image(Media(str(path), path=path), settings=DecodingSettings(alpha_ground=GROUND))
    expected = np.stack([np.tile(colour, 64) for colour in (GROUND, (255, 0, 0))])
    for images in (path, Image.open(path), training):
        assert (saved(images, return_tensors="np")["pixel_values"][0] == expected).all()
    assert (saved(videos=[[path, path]], return_tensors="np")["pixel_values"][0] == np.tile(expected, 2)).all()
