"""Images by Pillow.

Shapes: H height, W width.
"""

import math

import numpy as np
from PIL import Image, ImageOps

from imp_ds.data.samples import BadSample, Media
from imp_ds.models.imp.image_processing_imp import to_rgb

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_IMAGE_PIXELS = 1 << 27  # 128 M, 384 MiB as RGB


def read_image(media: Media, needed: tuple[int, int] | None = None) -> np.ndarray:
    """uint8 [H, W, 3] of any mode, upright by its EXIF orientation.

    needed: (height, width) that the picture is to have at least, where it has them; a JPEG far above is decoded at a half, a
    quarter or an eighth of its size, up to twice as fast (benchmarks/results/decoding.md). None: as it is.

    Raises BadSample for what is no image, is damaged, or has more than MAX_IMAGE_PIXELS.
    """
    with media.open() as file:
        try:
            with Image.open(file, formats=_FORMATS) as image:
                if image.width * image.height > MAX_IMAGE_PIXELS:
                    size = f"{image.width} x {image.height} pixels are more than {MAX_IMAGE_PIXELS}"
                    raise BadSample("too large", f"{media.name}: {size}")
                if needed is not None and image.format == "JPEG":
                    _decode_smaller(image, needed)
                image.load()
                return to_rgb(ImageOps.exif_transpose(image))
        except Image.DecompressionBombError as error:
            raise BadSample("too large", f"{media.name}: {error}") from error
        except (OSError, ValueError, SyntaxError, EOFError, TypeError, KeyError, IndexError) as error:
            # damaged files make Pillow raise whatever its parsers run into
            raise BadSample("unreadable image", f"{media.name}: {error}") from error


def _decode_smaller(image: Image.Image, needed: tuple[int, int]) -> None:
    """Let the JPEG decoder scale down, but not below what covers `needed` either way round: EXIF may turn the picture yet."""
    scale = min(1.0, max(max(needed) / min(image.size), min(needed) / max(image.size)))
    image.draft("RGB" if image.mode == "RGB" else None, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
