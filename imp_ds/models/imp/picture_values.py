"""The switches of a vision processor: whether pictures are resized, and whether their values leave as the model's own uint8.

Shapes: B batch, L patches of an example, P values of a patch, the three channels of each pixel side by side.
"""

from copy import deepcopy
from typing import Any

import numpy as np
from PIL import Image

from imp_ds.errors import UserError
from imp_ds.modalities.vision.framing import Size

# By these `do_rescale` and `do_normalize` do what the model does with uint8 values: 0..255 to -1..1.
SWITCHES = {
    "do_resize": True, "keep_aspect": False, "naflex": False, "do_rescale": False, "rescale_factor": 1 / 255,
    "do_normalize": False, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "do_convert_rgb": True,
}  # fmt: skip


def set_switches(part, kwargs: dict, defaults: dict) -> None:
    """Move what a processor is made with from `kwargs` to its attributes, or what it has by default."""
    for name, default in defaults.items():
        setattr(part, name, deepcopy(kwargs.pop(name, default)))


def chosen(part, given: dict) -> dict[str, Any]:
    """Each keyword of a call: as given, or, where it is absent or None, as the processor stores it; None where it does not."""
    stored = {name: getattr(part, name, None) for name in part.valid_kwargs.__annotations__}
    return {**stored, **{name: value for name, value in given.items() if value is not None}}


def own_size(clips: list[np.ndarray], largest: Size | None) -> Size:
    """(height, width) of pictures [T, H, W, 3] that keep their size. Raises UserError where they differ, or are too large."""
    sizes = sorted({clip.shape[1:3] for clip in clips})
    if len(sizes) > 1:
        raise UserError("the pictures of a batch differ in size", got=sizes[:4], fix="leave do_resize=False out")
    if largest is not None and (sizes[0][0] > largest[0] or sizes[0][1] > largest[1]):
        raise UserError("a picture is larger than the model has positions for", got=sizes[0], allowed=f"up to {largest}")
    return sizes[0]


def check_rgb(image) -> None:
    """Raise UserError for a picture that is not of three channels already."""
    if isinstance(image, Image.Image):
        found, is_rgb = f"a picture of mode {image.mode}", image.mode == "RGB"
    else:
        shape = np.shape(image)
        found, is_rgb = f"an array of shape {shape}", len(shape) == 3 and 3 in (shape[0], shape[-1])
    if not is_rgb:
        raise UserError("a picture is not RGB", got=found, fix="leave do_convert_rgb=False out")


def scaled(values_BLP: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    """uint8 values as `do_rescale` and `do_normalize` say: float32, or as they are. Raises UserError for a mean or a spread that
    is neither a number nor one for each channel."""
    if not (options["do_rescale"] or options["do_normalize"]):
        return values_BLP
    values = values_BLP.astype(np.float32)
    if options["do_rescale"]:
        values *= np.float32(options["rescale_factor"])
    if options["do_normalize"]:
        mean, std = (_of_channels(name, options[name]) for name in ("image_mean", "image_std"))
        values = ((values.reshape(*values.shape[:-1], -1, 3) - mean) / std).reshape(values.shape)
    return values


def _of_channels(name: str, value) -> np.ndarray:
    try:
        found = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError):
        found = np.zeros(0, np.float32)
    if found.shape not in ((), (3,)) or (name == "image_std" and not (found > 0).all()):
        allowed = "a number, or three of them" + (", above 0" if name == "image_std" else "")
        raise UserError(f"unknown {name}", got=repr(value)[:100], allowed=allowed)
    return found
