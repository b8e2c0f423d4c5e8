"""Images by Pillow.

Shapes: H height, W width.
"""

from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from imp_ds.modalities.decoding_settings import DEFAULTS, DecodingSettings
from imp_ds.modalities.media import BadSample, Media
from imp_ds.modalities.vision.picture_files import ALLOWED, FORMATS, TooManyPixels, bounded, decode_smaller
from imp_ds.modalities.vision.pixels import to_rgb, upright


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
                with bounded(self.settings):
                    self.image.load()
                return to_rgb(upright(self.image), self.settings.alpha_ground)
            except Exception as error:  # damaged files make Pillow raise whatever its parsers run into
                raise bad_image(self.name, error) from error


def open_image(media: Media, needed: tuple[int, int] | None = None, settings: DecodingSettings = DEFAULTS) -> OpenImage:
    """Read the header of an image.

    needed: (height, width) that the picture is to have at least, where it has them; a JPEG far above will be decoded at a half, a
    quarter or an eighth of its size, up to twice as fast (benchmarks/results/decoding.md). None: as it is.

    Raises BadSample for what is no image, or has more pixels than `settings` allow.
    """
    file = media.open()
    try:
        with bounded(settings):
            image = Image.open(file, formats=FORMATS)
        check_pixels(media.name, image.width, image.height, settings)
        size = 3 * image.width * image.height
        if needed is not None:
            decode_smaller(image, needed)
    except Exception as error:
        file.close()
        raise bad_image(media.name, error) from error
    return OpenImage(media.name, file, image, size, settings)


def read_image(media: Media, needed: tuple[int, int] | None = None, settings: DecodingSettings = DEFAULTS) -> np.ndarray:
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
    if isinstance(error, TooManyPixels):
        return BadSample("too large", f"{name}: {error}")
    if isinstance(error, Image.UnidentifiedImageError):
        return BadSample("unreadable image", f"{name}: no image of a kind that is read: {ALLOWED}")
    message = str(error).strip().partition("\n")[0] or type(error).__name__
    return BadSample("unreadable image", f"{name}: {message}")
