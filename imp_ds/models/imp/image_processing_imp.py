"""ImpImageProcessor: images of any kind to `pixel_values` and `pixel_positions`; each image is a clip of one step."""

import numpy as np
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from imp_ds.decoding_settings import WHITE
from imp_ds.errors import UserError
from imp_ds.modalities import vision
from imp_ds.models.imp.keywords import ImpImageProcessorKwargs, check_keywords
from imp_ds.models.imp.picture_files import opened_picture
from imp_ds.models.imp.picture_values import SWITCHES, check_rgb, chosen, own_size, scaled, set_switches

_CHANNELS = (1, 3, 4)
_ALLOWED = (
    "PIL images, paths, bytes or open files of images, or arrays [H, W], [H, W, C] or [C, H, W] with 1, 3 or 4 channels, "
    "uint8 in 0..255 or floats in 0..1"
)


class ImpImageProcessor(BaseImageProcessor):
    """Resizes images to `size`, cuts them into patches and returns uint8 values: the model normalises them itself.

    Args:
        size: (height, width), one number for both, or {"height": h, "width": w}.
        patch: frames, height and width of a patch, as `ImpConfig.vision_patch`.
        largest: (height, width) that the model has positions for, which bounds what `keep_aspect` may choose; None: no bound.
        ground: colour (R, G, B) that transparent pictures lie on.
        kwargs: the switches of `ImpImageProcessorKwargs`, do_resize to do_convert_rgb.
    """

    model_input_names = list(vision.INPUT_NAMES)
    valid_kwargs = ImpImageProcessorKwargs
    do_convert_rgb = SWITCHES["do_convert_rgb"]  # transformers looks for it in the class

    def __init__(self, size=256, patch=(4, 16, 16), largest=None, ground=WHITE, **kwargs):
        set_switches(self, kwargs, SWITCHES)
        super().__init__(**kwargs)
        self.ground = list(ground)
        self.size = size_dict(size)
        self.patch = list(patch)
        self.largest = None if largest is None else size_dict(largest)

    def preprocess(self, images, **kwargs) -> BatchFeature:
        """One image or a list of images to a BatchFeature of `pixel_values` [B, L, P] and `pixel_positions` [B, L, 3].

        kwargs: `ImpImageProcessorKwargs`, which override what is stored.

        Raises:
            UserError: something that is no image, or sizes that do not fit.
        """
        check_keywords("the image processor", kwargs, self.valid_kwargs)
        options = chosen(self, kwargs)
        needed = size_pair(options["size"]) if options["do_resize"] else None
        clips = [to_frame(image, self.ground, options, needed)[None] for image in image_list(images)]
        return patches_of(self, clips, 1, options)

    def __call__(self, images, **kwargs) -> BatchFeature:
        return self.preprocess(images, **kwargs)


def patches_of(part, clips: list[np.ndarray], frames: int, options: dict) -> BatchFeature:
    """What both vision processors give of clips, uint8 [T, H, W, 3]: patches and their coordinates."""
    largest = part.largest and size_pair(part.largest)
    keep_aspect = bool(options["keep_aspect"] and options["do_resize"])
    size = size_pair(options["size"]) if options["do_resize"] else own_size(clips, largest)
    rngs = None if options["rng"] is None else [options["rng"]] * len(clips)  # one for all, one after another
    inputs = vision.preprocess(
        clips, frames, size, part.patch, keep_aspect=keep_aspect, largest=largest, drop_rate=options["drop_rate"] or 0.0,
        rngs=rngs,
    )  # fmt: skip
    inputs["pixel_values"] = scaled(inputs["pixel_values"], options)
    return BatchFeature(inputs, tensor_type=options["return_tensors"])


def to_frame(image, ground: list[int], options: dict, needed: tuple[int, int] | None) -> np.ndarray:
    """An image of any kind to uint8 [H, W, 3], upright. needed: as `opened_picture` takes it."""
    image = channels_last(opened_picture(image, needed), options["input_data_format"])
    if not options["do_convert_rgb"]:
        check_rgb(image)
    return to_rgb(upright(image), tuple(ground))


def size_pair(size) -> tuple[int, int]:
    """(height, width) of any way to write a size."""
    if isinstance(size, int):
        return size, size
    pair = (size.get("height"), size.get("width")) if hasattr(size, "get") else tuple(size)
    if len(pair) != 2 or not all(isinstance(n, (int, np.integer)) and n > 0 for n in pair):
        raise UserError("unknown size of a picture", got=size, allowed='an int, (height, width) or {"height": h, "width": w}')
    return pair


def size_dict(size) -> dict[str, int]:
    height, width = size_pair(size)
    return {"height": height, "width": width}


def image_list(images) -> list:
    """The batch as a list of single images: a list, lists of images by sample, a 4-D array [B, H, W, C], or one image."""
    if isinstance(images, (list, tuple)):
        images = [image for entry in images for image in (entry if isinstance(entry, (list, tuple)) else [entry])]
        if not images:
            raise UserError("there are no images in the list", allowed=_ALLOWED)
        return images
    return list(images) if getattr(images, "ndim", 0) == 4 else [images]


def channels_last(array, input_data_format: str | None):
    """An array whose layout is said, its channels behind; anything else as it is."""
    if input_data_format not in (None, "channels_first", "channels_last"):
        raise UserError("unknown input_data_format", got=input_data_format, allowed="channels_first, channels_last")
    if input_data_format is None or not hasattr(array, "ndim") or array.ndim < 3:
        return array
    array = np.asarray(array)
    last = np.moveaxis(array, -3, -1) if input_data_format == "channels_first" else array
    if last.shape[-1] not in _CHANNELS:
        got = f"an array of shape {array.shape}, {input_data_format}"
        raise UserError("the channels are not there", got=got, allowed=_ALLOWED)
    return last


_ORIENTATION = 0x0112  # EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def upright(image):
    """A PIL image turned as its EXIF orientation says; anything else, and an image whose EXIF cannot be read, as it is."""
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
        raise UserError("this is no image", got=repr(image)[:100], allowed=_ALLOWED)
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[-1] not in _CHANNELS and pixels.shape[0] in _CHANNELS:
        pixels = pixels.transpose(1, 2, 0)
    if not pixels.size or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[-1] not in _CHANNELS):
        raise UserError("this is no image", got=f"an array of shape {pixels.shape}", allowed=_ALLOWED)
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
        raise UserError("the pixels of an image are out of range", got=f"{pixels.dtype} in {low}..{high}", allowed=_ALLOWED)
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
