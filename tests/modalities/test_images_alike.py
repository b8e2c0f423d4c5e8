"""Every kind of image gives the same pixels to training's collator and to the exported processor: the pixels that it holds."""

import io

import numpy as np
import pytest
from PIL import Image

from imp_ds import ImpProcessor
from imp_ds.data.decoding import decode
from imp_ds.data.loading.collation import Collator
from imp_ds.modalities.decoding_settings import DecodingSettings
from imp_ds.modalities.media import Media
from imp_ds.modalities.modality import Wanted
from imp_ds.modalities.text.tokenizers import train_tokenizer
from imp_ds.modalities.views import Views
from imp_ds.modalities.vision.view import VisionView
from imp_ds.models.imp.feature_extraction_imp import ImpFeatureExtractor
from imp_ds.models.imp.image_processing_imp import ImpImageProcessor
from imp_ds.models.imp.video_processing_imp import ImpVideoProcessor

GROUND = (10, 200, 30)
SETTINGS = DecodingSettings(alpha_ground=GROUND)
RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    """As training builds it, saved and loaded again; 16 x 8 pixels in patches of 8 x 8: the upper and the lower one."""
    folder = tmp_path_factory.mktemp("processor")
    ImpProcessor(
        ImpImageProcessor(size=(16, 8), patch=(1, 8, 8), ground=GROUND),
        ImpVideoProcessor(size=(16, 8), patch=(1, 8, 8), ground=GROUND),
        ImpFeatureExtractor(seconds=0.5), train_tokenizer(["one two three"], 64, max_length=12),
    ).save_pretrained(folder)  # fmt: skip
    return ImpProcessor.from_pretrained(folder)


def halves(mode: str, left, right, size=(16, 8)) -> Image.Image:
    """16 x 8 pixels, the left half of one colour, the right of another."""
    picture = Image.new(mode, size, right)
    picture.paste(Image.new(mode, (size[0] // 2, size[1]), left), (0, 0))
    return picture


def palette(transparency) -> Image.Image:
    """Colour 0 is red, colour 1 is blue."""
    picture = halves("P", 0, 1)
    picture.putpalette([*RED, *BLUE])
    picture.info["transparency"] = transparency
    return picture


def sixteen_bits(low: int, high: int) -> Image.Image:
    return Image.fromarray(np.array([[low] * 8 + [high] * 8] * 8, dtype=np.uint16))


def mixed(alpha: int, colour) -> tuple[int, ...]:
    """A colour over the ground."""
    return tuple(round((alpha * c + (255 - alpha) * g) / 255) for c, g in zip(colour, GROUND))


# name: (picture, kind of file, options, what the left and the right half show)
IMAGES = {
    "palette with one transparent colour": (palette(0), "PNG", {}, (GROUND, BLUE)),
    # tRNS: of colour 0 alpha 51, a fifth; colour 1 has none, so it is opaque
    "palette with alphas": (palette(bytes([51])), "PNG", {}, (mixed(51, RED), BLUE)),
    "palette GIF": (palette(1), "GIF", {}, (RED, GROUND)),
    "transparent grey": (halves("L", 7, 90), "PNG", {"transparency": 7}, (GROUND, (90,) * 3)),
    "transparent colour": (halves("RGB", RED, BLUE), "PNG", {"transparency": RED}, (GROUND, BLUE)),
    "alpha": (halves("RGBA", (*RED, 102), (*BLUE, 255)), "PNG", {}, (mixed(102, RED), BLUE)),
    "grey and alpha": (halves("LA", (60, 0), (60, 255)), "PNG", {}, (GROUND, (60,) * 3)),
    "alpha WebP": (halves("RGBA", (*RED, 0), (*BLUE, 255)), "WEBP", {"lossless": True}, (GROUND, BLUE)),
    "alpha TIFF": (halves("RGBA", (*RED, 0), (*BLUE, 255)), "TIFF", {}, (GROUND, BLUE)),
    "alpha AVIF": (halves("RGBA", (*RED, 0), (*BLUE, 255)), "AVIF", {"quality": 100, "subsampling": "4:4:4"}, (GROUND, BLUE)),
    "AVIF": (halves("RGB", RED, BLUE), "AVIF", {"quality": 100, "subsampling": "4:4:4"}, (RED, BLUE)),
    # no ink is white; all of cyan and yellow is green: (255 - 255, 255 - 0, 255 - 255)
    "CMYK JPEG": (halves("CMYK", (0, 0, 0, 0), (255, 0, 255, 0)), "JPEG", {"quality": 100}, ((255,) * 3, (0, 255, 0))),
    "CMYK TIFF": (halves("CMYK", (0, 0, 0, 0), (255, 0, 255, 0)), "TIFF", {}, ((255,) * 3, (0, 255, 0))),
    # 25,700 / 256 = 100.4, 51,455 / 256 = 200.99: the higher byte of each
    "16 bits": (sixteen_bits(25_700, 51_455), "PNG", {}, ((100,) * 3, (200,) * 3)),
    "16 bits TIFF": (sixteen_bits(25_700, 51_455), "TIFF", {}, ((100,) * 3, (200,) * 3)),
    "one bit": (halves("1", 0, 1), "PNG", {}, ((0,) * 3, (255,) * 3)),
}  # fmt: skip
LOSSY = {"AVIF", "alpha AVIF", "CMYK JPEG"}


def both(processor, data: bytes) -> np.ndarray:
    """What training's collator makes of a file, [L, P]: held to what the processor makes of it."""
    views = Views(vision=VisionView(height=16, width=8))
    sample = decode({"vision": Media("x", data=data)}, views, wanted=Wanted(settings=SETTINGS))
    training = Collator(processor)("pictures", views, [sample]).inputs["vision"]["pixel_values"][0].numpy()
    exported = processor(images=[data], return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(training, exported)
    return training


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("name", IMAGES)
def test_images_of_every_kind_are_the_same_in_training_and_after_export(processor, name, turned):
    """EXIF 6 turns the stored picture clockwise, so that its left half is the upper patch; without, 8 x 16 of it are shrunk and
    stretched to 16 x 8, alike."""
    picture, kind, options, colours = IMAGES[name]
    if turned and kind in ("GIF",):
        picture = picture.transpose(Image.Transpose.ROTATE_270)  # which has no EXIF
    elif turned:
        exif = Image.Exif()
        exif[0x0112] = 6
        options = options | {"exif": exif}
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    found = both(processor, buffer.getvalue()).astype(int)
    if turned:
        expected = np.stack([np.tile(colour, 64) for colour in colours])
        assert np.abs(found - expected).max() <= (4 if name in LOSSY else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_orientation_is_undone_in_training_and_after_export(processor, orientation):
    """The picture as it should be seen, 16 x 8 of it, is stored turned; the inverse of each turn by hand."""
    upright = np.random.default_rng(0).integers(0, 256, (16, 8, 3), dtype=np.uint8)
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
        6: np.rot90(upright), 7: upright[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(buffer, "PNG", exif=exif)
    np.testing.assert_array_equal(both(processor, buffer.getvalue()), upright.reshape(2, 192))
