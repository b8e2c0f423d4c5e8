"""Images by Pillow.

Shapes: H height, W width.
"""

import math
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from imp_ds.data.samples import BadSample, Media
from imp_ds.models.imp.image_processing_imp import to_rgb

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_IMAGE_PIXELS = 1 << 27  # 128 M, 384 MiB as RGB
# damaged files make Pillow raise whatever its parsers run into
_RAISED = (Image.DecompressionBombError, OSError, ValueError, SyntaxError, EOFError, TypeError, KeyError, IndexError)


class OpenImage(NamedTuple):
    """An image whose header has been read. `pixels` reads the rest and closes the file.

    bytes: of all its pixels as RGB, more than the file has.
    """

    name: str
    file: BinaryIO
    image: Image.Image
    bytes: int

    def pixels(self) -> np.ndarray:
        """uint8 [H, W, 3] of any mode, upright by its EXIF orientation. Raises BadSample for what is damaged."""
        with self.file:
            try:
                self.image.load()
                return to_rgb(ImageOps.exif_transpose(self.image))
            except _RAISED as error:
                raise _bad(self.name, error) from error


def open_image(media: Media, needed: tuple[int, int] | None = None) -> OpenImage:
    """Read the header of an image.

    needed: (height, width) that the picture is to have at least, where it has them; a JPEG far above will be decoded at a half, a
    quarter or an eighth of its size, up to twice as fast (benchmarks/results/decoding.md). None: as it is.

    Raises BadSample for what is no image, or has more than MAX_IMAGE_PIXELS.
    """
    file = media.open()
    try:
        image = Image.open(file, formats=_FORMATS)
        if image.width * image.height > MAX_IMAGE_PIXELS:
            raise BadSample("too large", f"{media.name}: {image.width} x {image.height} pixels are more than {MAX_IMAGE_PIXELS}")
        size = 3 * image.width * image.height
        if needed is not None and image.format == "JPEG":
            _decode_smaller(image, needed)
    except _RAISED as error:
        file.close()
        raise _bad(media.name, error) from error
    except BadSample:
        file.close()
        raise
    return OpenImage(media.name, file, image, size)


def read_image(media: Media, needed: tuple[int, int] | None = None) -> np.ndarray:
    """The `pixels` of `open_image`."""
    return open_image(media, needed).pixels()


def _bad(name: str, error: Exception) -> BadSample:
    return BadSample("too large" if isinstance(error, Image.DecompressionBombError) else "unreadable image", f"{name}: {error}")


def _decode_smaller(image: Image.Image, needed: tuple[int, int]) -> None:
    """Let the JPEG decoder scale down, but not below what covers `needed` either way round: EXIF may turn the picture yet."""
    scale = min(1.0, max(max(needed) / min(image.size), min(needed) / max(image.size)))
    image.draft("RGB" if image.mode == "RGB" else None, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
