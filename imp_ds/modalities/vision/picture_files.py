"""Which picture files are read, in training and by the processor: kinds, bounds, and how much of a large JPEG is decoded."""

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike

from PIL import Image

from imp_ds.errors import UserError
from imp_ds.modalities.decoding_settings import DecodingSettings
from imp_ds.modalities.vision.framing import Size

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "PPM")
try:  # HEIC, where the package is installed: pip install imp_ds[heic]
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)
    FORMATS += ("HEIF",)
except ImportError:
    pass
ALLOWED = "PNG, JPEG, WebP, AVIF, GIF, TIFF, BMP, PPM"
ALLOWED += ", HEIC" if "HEIF" in FORMATS else "; HEIC after pip install pillow-heif"
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # of half of what `bounded` allows


def is_file(source) -> bool:
    """Whether something given to a processor is a file: a path, its bytes, or an open file. Raises UserError for a URL."""
    if isinstance(source, str) and "://" in source[:16]:
        raise UserError(
            "the processor fetches nothing", got=source[:200], allowed="paths, bytes and open files",
            fix="download it first, or give what transformers.image_utils.load_image (audio_utils, video_utils) makes of it",
        )  # fmt: skip
    return isinstance(source, (str, PathLike, bytes)) or (hasattr(source, "read") and not isinstance(source, Image.Image))


def file_bytes(source) -> bytes:
    """The bytes of an open file, from where it stands, or bytes as they are. Raises UserError for a file of text."""
    found = source if isinstance(source, bytes) else source.read()
    if not isinstance(found, bytes):
        raise UserError("a file was opened as text", got=repr(source)[:100], fix='open it with "rb"')
    return found


def opened_picture(source, needed: Size | None = None):
    """The picture of a file, read in full; anything else as it is.

    needed: (height, width) that it is to have at least, as `decode_smaller` takes it.

    Raises UserError for a file that is damaged, of another kind, or too large.
    """
    if not is_file(source):
        return source
    settings = DecodingSettings()
    file = source if isinstance(source, (str, PathLike)) else io.BytesIO(file_bytes(source))
    try:
        with bounded(settings), Image.open(file, formats=FORMATS) as image:
            if needed is not None:
                decode_smaller(image, needed)
            image.load()
            return image
    except Exception as error:  # damaged files make Pillow raise whatever its parsers run into
        got = repr(source)[:100] + f" ({type(error).__name__}: {str(error)[:100]})"
        raise UserError("a picture cannot be read", got=got, allowed=f"images, arrays, and files of {ALLOWED}") from error


class TooManyPixels(ValueError):
    """A picture, or a frame of one, is larger than what is read."""


@contextmanager
def bounded(settings: DecodingSettings) -> Iterator[None]:
    """Let Pillow refuse a picture of too many pixels before it takes memory: what the frame of an animation makes of its size is
    known to nobody else. Raises TooManyPixels."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, settings.image_pixels / 2  # above twice that is an error
    try:
        yield
    except Image.DecompressionBombError as error:
        limit = f"data.decoding.image_pixels = {settings.image_pixels}"
        raise TooManyPixels(f"{str(error).partition(' exceeds')[0]}, more than {limit}") from error
    finally:
        Image.MAX_IMAGE_PIXELS = before


def decode_smaller(image: Image.Image, needed: Size) -> None:
    """Let the decoder of a JPEG far above `needed`, (height, width), scale down to a half, a quarter or an eighth, but not below
    what covers it either way round: EXIF may turn the picture yet. Up to twice as fast (benchmarks/results/decoding.md)."""
    if image.format == "JPEG":
        scale = min(1.0, max(max(needed) / min(image.size), min(needed) / max(image.size)))
        size = math.ceil(image.width * scale), math.ceil(image.height * scale)
        image.draft("RGB" if image.mode == "RGB" else None, size)
