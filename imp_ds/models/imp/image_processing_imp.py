"""ImpImageProcessor: images of any kind to `pixel_values` and `pixel_positions`; each image is a clip of one step."""

import numpy as np
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from imp_ds.errors import UserError
from imp_ds.modalities import vision

_CHANNELS = (1, 3, 4)
_ALLOWED = "PIL images, or arrays [H, W], [H, W, C] or [C, H, W] with 1, 3 or 4 channels, uint8 in 0..255 or floats in 0..1"


class ImpImageProcessor(BaseImageProcessor):
    """Resizes images to `size`, cuts them into patches and returns uint8 values: the model normalises them itself.

    Args:
        size: (height, width), one number for both, or {"height": h, "width": w}.
        patch: frames, height and width of a patch, as `ImpConfig.vision_patch`.
        largest: (height, width) that the model has positions for, which bounds what `keep_aspect` may choose; None: no bound.
    """

    model_input_names = list(vision.INPUT_NAMES)

    def __init__(self, size=256, patch=(4, 16, 16), largest=None, **kwargs):
        super().__init__(**kwargs)
        self.size = size_dict(size)
        self.patch = list(patch)
        self.largest = None if largest is None else size_dict(largest)

    def preprocess(self, images, *, size=None, keep_aspect=False, drop_rate=0.0, rng=None, return_tensors=None):
        """One image or a list of images to a BatchFeature of `pixel_values` [B, L, P] and `pixel_positions` [B, L, 3].

        The keywords override the stored size and add what a task's view asks for: see `imp_ds.modalities.vision.preprocess`.

        Raises:
            UserError: something that is no image, or sizes that do not fit.
        """
        clips = [to_rgb(image)[None] for image in image_list(images)]
        inputs = vision.preprocess(
            clips, 1, size_pair(self.size if size is None else size), self.patch, keep_aspect=keep_aspect,
            largest=self.largest and size_pair(self.largest), drop_rate=drop_rate, rngs=one_for_all(rng, clips),
        )  # fmt: skip
        return BatchFeature(inputs, tensor_type=return_tensors)

    def __call__(self, images, **kwargs) -> BatchFeature:
        return self.preprocess(images, **kwargs)


def one_for_all(rng: np.random.Generator | None, samples: list) -> list[np.random.Generator] | None:
    """The same generator for each sample, one after another."""
    return None if rng is None else [rng] * len(samples)


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
    """The batch as a list of single images: a list, a 4-D array [B, H, W, C], or one image."""
    if isinstance(images, (list, tuple)):
        if not images:
            raise UserError("there are no images in the list", allowed=_ALLOWED)
        return list(images)
    return list(images) if getattr(images, "ndim", 0) == 4 else [images]


def to_rgb(image) -> np.ndarray:
    """An image of any mode, type and layout to uint8 [H, W, 3]. Transparency is ignored."""
    if isinstance(image, Image.Image):
        if image.mode.startswith("I;16"):
            return grey_to_rgb((np.asarray(image) >> 8).astype(np.uint8))
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    if isinstance(image, (str, bytes)) or not hasattr(image, "__array__"):
        raise UserError("this is no image", got=repr(image)[:100], allowed=_ALLOWED, fix="open files with PIL.Image.open")
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[-1] not in _CHANNELS and pixels.shape[0] in _CHANNELS:
        pixels = pixels.transpose(1, 2, 0)
    if not pixels.size or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[-1] not in _CHANNELS):
        raise UserError("this is no image", got=f"an array of shape {pixels.shape}", allowed=_ALLOWED)
    return grey_to_rgb(to_uint8(pixels))


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """uint8 as it is; floats in 0..1 times 255; other integers in 0..255."""
    if pixels.dtype == np.uint8:
        return pixels
    low, high = (pixels.min(), pixels.max()) if pixels.dtype.kind in "iufb" else (np.nan, np.nan)
    largest = 1.0 if pixels.dtype.kind in "fb" else 255
    if not (low >= 0 and high <= largest):  # also refuses NaN
        raise UserError("the pixels of an image are out of range", got=f"{pixels.dtype} in {low}..{high}", allowed=_ALLOWED)
    return pixels.astype(np.uint8) if largest == 255 else np.rint(pixels * 255.0).astype(np.uint8)


def grey_to_rgb(pixels: np.ndarray) -> np.ndarray:
    """[..., H, W] or [..., H, W, 1, 3 or 4] of uint8 to three channels."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels[..., :3]
