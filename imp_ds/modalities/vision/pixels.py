"""Pixels of an image of any mode as three channels of uint8: what training and the processor of an exported model share."""

import numpy as np
from PIL import Image

from imp_ds.errors import UserError
from imp_ds.modalities.decoding_settings import WHITE

CHANNELS = (1, 3, 4)
ALLOWED = (
    "PIL images, paths, bytes or open files of images, or arrays [H, W], [H, W, C] or [C, H, W] with 1, 3 or 4 channels, "
    "uint8 in 0..255 or floats in 0..1"
)
_ORIENTATION = 0x0112  # EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def size_pair(size) -> tuple[int, int]:
    """(height, width) of any way to write a size."""
    if isinstance(size, int):
        return size, size
    pair = (size.get("height"), size.get("width")) if hasattr(size, "get") else tuple(size)
    if len(pair) != 2 or not all(isinstance(n, (int, np.integer)) and n > 0 for n in pair):
        raise UserError("unknown size of a picture", got=size, allowed='an int, (height, width) or {"height": h, "width": w}')
    return pair


def upright(image):
    """A PIL image turned by its EXIF orientation; anything else, and an image whose EXIF cannot be read, as it is."""
    if not isinstance(image, Image.Image):
        return image
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION))
    except Exception:  # damaged EXIF makes Pillow raise whatever its parser runs into; it says nothing of the pixels
        return image
    return image if turn is None else image.transpose(turn)


def to_rgb(image, ground: tuple[int, int, int] = WHITE) -> np.ndarray:
    """An image of any mode, type and layout to uint8 [H, W, 3]; what is transparent lies on `ground` (R, G, B).

    Numbers of more than 8 bits are scaled: of 16 bits by their range, floats in 0..1 too; where all fit into 0..255 they are
    taken as they are. Raises UserError for others, which would be white or black, and for what is no image.
    """
    if isinstance(image, Image.Image):
        return _pil_to_rgb(image, ground)
    if isinstance(image, (str, bytes)) or not hasattr(image, "__array__"):
        raise UserError("this is no image", got=repr(image)[:100], allowed=ALLOWED)
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[-1] not in CHANNELS and pixels.shape[0] in CHANNELS:
        pixels = pixels.transpose(1, 2, 0)
    if not pixels.size or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[-1] not in CHANNELS):
        raise UserError("this is no image", got=f"an array of shape {pixels.shape}", allowed=ALLOWED)
    return to_three_channels(to_uint8(pixels), ground)


def _pil_to_rgb(image: Image.Image, ground: tuple[int, int, int]) -> np.ndarray:
    if image.mode == "I" or image.mode == "F" or image.mode.startswith("I;16"):
        return to_three_channels(_scaled(np.asarray(image)), ground)
    if not image.has_transparency_data:
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    below = Image.new("RGBA", image.size, (*ground, 255))
    return np.asarray(Image.alpha_composite(below, image.convert("RGBA")).convert("RGB"))


def _scaled(pixels_HW: np.ndarray) -> np.ndarray:
    """Numbers of more than 8 bits to uint8."""
    low, high = (float(pixels_HW.min()), float(pixels_HW.max())) if pixels_HW.size else (0.0, 0.0)
    if pixels_HW.dtype == np.uint16:
        return (pixels_HW >> 8).astype(np.uint8)
    if low >= 0 and high <= (1.0 if pixels_HW.dtype.kind == "f" else -1.0):
        return np.rint(pixels_HW * 255.0).astype(np.uint8)
    if low >= 0 and high <= 255:
        return np.rint(pixels_HW).astype(np.uint8)
    if low >= 0 and high <= 65535:
        return (pixels_HW.astype(np.int64) >> 8).astype(np.uint8)
    raise UserError(
        "the numbers of a picture have no known range", got=f"{pixels_HW.dtype} in {low:g}..{high:g}",
        allowed="0..1 (floats), 0..255 or 0..65535", fix="scale the pictures to one of these",
    )  # fmt: skip


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """uint8 as it is; floats in 0..1 times 255; other integers in 0..255."""
    if pixels.dtype == np.uint8:
        return pixels
    low, high = (pixels.min(), pixels.max()) if pixels.dtype.kind in "iufb" else (np.nan, np.nan)
    largest = 1.0 if pixels.dtype.kind in "fb" else 255
    if not (low >= 0 and high <= largest):  # also refuses NaN
        raise UserError("the pixels of an image are out of range", got=f"{pixels.dtype} in {low}..{high}", allowed=ALLOWED)
    return pixels.astype(np.uint8) if largest == 255 else np.rint(pixels * 255.0).astype(np.uint8)


def to_three_channels(pixels: np.ndarray, ground: tuple[int, int, int] = WHITE) -> np.ndarray:
    """[H, W] or [..., H, W, C] of uint8, C = 1, 3 or 4 (the last is alpha), to three channels."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.shape[-1] == 4:
        frames = pixels.reshape(-1, *pixels.shape[-3:])
        flat = [_pil_to_rgb(Image.fromarray(np.ascontiguousarray(frame), "RGBA"), ground) for frame in frames]
        return np.stack(flat).reshape(*pixels.shape[:-1], 3)
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels
