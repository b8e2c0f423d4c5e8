"""ImpImageProcessor: images of any kind to `pixel_values` and `pixel_positions`; each image is a clip of one step."""

import numpy as np
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from imp_ds.errors import UserError
from imp_ds.modalities.decoding_settings import WHITE
from imp_ds.modalities.vision import patches as vision
from imp_ds.modalities.vision.picture_files import opened_picture
from imp_ds.modalities.vision.pixels import ALLOWED, CHANNELS, size_pair, to_rgb, upright
from imp_ds.models.imp.keywords import ImpImageProcessorKwargs, check_keywords
from imp_ds.models.imp.picture_values import SWITCHES, check_rgb, chosen, own_size, scaled, set_switches


class ImpImageProcessor(BaseImageProcessor):
    """Resizes images to `size`, cuts them into patches and returns uint8 values: the model normalises them itself.

    Args:
        size: (height, width), one number for both, or {"height": h, "width": w}.
        patch: frames, height and width of a patch, as `ImpConfig.vision_patch`.
        largest: (height, width) that the model has positions for, which bounds what `keep_aspect` and `naflex` may choose; None:
            no bound.
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
    keep_aspect, naflex = (bool(options[name] and options["do_resize"]) for name in ("keep_aspect", "naflex"))
    if keep_aspect and naflex:
        raise UserError("two ways to keep the aspect ratio", got="keep_aspect and naflex", fix="pass keep_aspect=False")
    size = size_pair(options["size"]) if options["do_resize"] else own_size(clips, largest)
    rngs = None if options["rng"] is None else [options["rng"]] * len(clips)  # one for all, one after another
    inputs = vision.preprocess(
        clips, frames, size, part.patch, keep_aspect=keep_aspect, naflex=naflex, largest=largest,
        drop_rate=options["drop_rate"] or 0.0, rngs=rngs,
    )  # fmt: skip
    inputs["pixel_values"] = scaled(inputs["pixel_values"], options)
    return BatchFeature(inputs, tensor_type=options["return_tensors"])


def to_frame(image, ground: list[int], options: dict, needed: tuple[int, int] | None) -> np.ndarray:
    """An image of any kind to uint8 [H, W, 3], upright. needed: as `opened_picture` takes it."""
    image = channels_last(opened_picture(image, needed), options["input_data_format"])
    if not options["do_convert_rgb"]:
        check_rgb(image)
    return to_rgb(upright(image), tuple(ground))


def size_dict(size) -> dict[str, int]:
    height, width = size_pair(size)
    return {"height": height, "width": width}


def image_list(images) -> list:
    """The batch as a list of single images: a list, lists of images by sample, a 4-D array [B, H, W, C], or one image."""
    if isinstance(images, (list, tuple)):
        images = [image for entry in images for image in (entry if isinstance(entry, (list, tuple)) else [entry])]
        if not images:
            raise UserError("there are no images in the list", allowed=ALLOWED)
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
    if last.shape[-1] not in CHANNELS:
        got = f"an array of shape {array.shape}, {input_data_format}"
        raise UserError("the channels are not there", got=got, allowed=ALLOWED)
    return last
