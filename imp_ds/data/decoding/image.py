"""Images by Pillow.

Shapes: H height, W width.
"""

import math
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from imp_ds.data.samples import BadSample, Media
from imp_ds.decoding_settings import DecodingSettings
from imp_ds.models.imp.image_processing_imp import to_rgb, upright

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "PPM")
try:  # HEIC, where the package is installed: pip install imp_ds[heic]
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)
    _FORMATS += ("HEIF",)
except ImportError:
    pass
ALLOWED = "PNG, JPEG, WebP, AVIF, GIF, TIFF, BMP, PPM"
ALLOWED += ", HEIC" if "HEIF" in _FORMATS else "; HEIC after pip install pillow-heif"
_SETTINGS = DecodingSettings()
Image.MAX_IMAGE_PIXELS = None  # the bound is `DecodingSettings.image_pixels`, which a user may set


class OpenImage(NamedTuple):
    """An image whose header has been read. `pixels` reads the rest and closes the file.

    bytes: of all its pixels as RGB, more than the file has.
    """

    name: str
    file: BinaryIO
    image: Image.Image
    bytes: int
    settings: DecodingSettings

    def pixels(self) -> np.ndarray:
        """uint8 [H, W, 3] of any mode, upright by its EXIF orientation. Raises BadSample for what is damaged."""
        with self.file:
            try:
                self.image.load()
                return to_rgb(upright(self.image), self.settings.alpha_ground)
            except Exception as error:  # damaged files make Pillow raise whatever its parsers run into
                raise bad_image(self.name, error) from error


def open_image(media: Media, needed: tuple[int, int] | None = None, settings: DecodingSettings = _SETTINGS) -> OpenImage:
    """Read the header of an image.

    needed: (height, width) that the picture is to have at least, where it has them; a JPEG far above will be decoded at a half, a
    quarter or an eighth of its size, up to twice as fast (benchmarks/results/decoding.md). None: as it is.

    Raises BadSample for what is no image, or has more pixels than `settings` allow.
    """
    file = media.open()
    try:
        image = Image.open(file, formats=_FORMATS)
        check_pixels(media.name, image.width, image.height, settings)
        size = 3 * image.width * image.height
        if needed is not None and image.format == "JPEG":
            _decode_smaller(image, needed)
    except Exception as error:
        file.close()
        raise bad_image(media.name, error) from error
    return OpenImage(media.name, file, image, size, settings)


def read_image(media: Media, needed: tuple[int, int] | None = None, settings: DecodingSettings = _SETTINGS) -> np.ndarray:
    """The `pixels` of `open_image`."""
    return open_image(media, needed, settings).pixels()


def check_pixels(name: str, width: int, height: int, settings: DecodingSettings) -> None:
    """Raise BadSample for a picture or frame that is too large."""
    if width * height > settings.image_pixels:
        limit = f"data.decoding.image_pixels = {settings.image_pixels}"
        raise BadSample("too large", f"{name}: {width} x {height} pixels, more than {limit}")


def bad_image(name: str, error: Exception) -> BadSample:
    """What an exception of Pillow or of ours means for the sample."""
    if isinstance(error, BadSample):
        return error
    if isinstance(error, MemoryError):
        return BadSample("too large", f"{name}: no memory for it")
    if isinstance(error, Image.UnidentifiedImageError):
        return BadSample("unreadable image", f"{name}: no image of a kind that is read: {ALLOWED}")
    said = str(error).strip().partition("\n")[0] or type(error).__name__
    return BadSample("unreadable image", f"{name}: {said}")


def _decode_smaller(image: Image.Image, needed: tuple[int, int]) -> None:
    """Let the JPEG decoder scale down, but not below what covers `needed` either way round: EXIF may turn the picture yet."""
    scale = min(1.0, max(max(needed) / min(image.size), min(needed) / max(image.size)))
    image.draft("RGB" if image.mode == "RGB" else None, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
