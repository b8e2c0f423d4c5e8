"""Animated GIF, WebP, PNG and AVIF as videos: their frames by their durations.

Shapes: N frames of the animation, T wanted ones, H height, W width.
"""

from contextlib import suppress

import numpy as np
from PIL import Image

from imp_ds.data.decoding.image import OpenImage, bad_image, check_pixels
from imp_ds.data.decoding.times import Times, chosen_frames
from imp_ds.data.samples import BadSample
from imp_ds.models.imp.image_processing_imp import to_rgb
from imp_ds.tasks import VisionView

_UNSAID_MS = 100  # players show a frame without a duration, or of less than 20 ms, for so long
_LEAST_MS = 20


def is_animated(image: OpenImage) -> bool:
    """Whether an image has several frames."""
    with suppress(Exception):  # what is damaged is found out when it is read
        return getattr(image.image, "n_frames", 1) > 1 and image.image.format != "TIFF"
    return False


def read_animation(opened: OpenImage, view: VisionView, rng: np.random.Generator | None) -> np.ndarray:
    """The frames that `view` wants: uint8 [T, H, W, 3]; closes the file. Raises BadSample for what is damaged or too large."""
    with opened.file:
        try:
            frames_T = chosen_frames(_times(opened), view, rng)
            check_pixels(opened.name, opened.image.width, opened.image.height, opened.settings)
            if len(frames_T) * opened.image.width * opened.image.height > opened.settings.video_pixels:
                raise BadSample("too large", f"{opened.name}: more pixels than data.decoding.video_pixels")
            return np.stack([_frame(opened, frame) for frame in frames_T.tolist()])
        except Exception as error:  # damaged files make Pillow raise whatever its parsers run into
            raise bad_image(opened.name, error) from error


def _times(opened: OpenImage) -> Times:
    """When each frame begins, in milliseconds."""
    image, start_N, now = opened.image, [], 0
    if image.n_frames > opened.settings.video_frames:
        raise BadSample("too large", f"{opened.name}: more frames than data.decoding.video_frames")
    for frame in range(image.n_frames):
        image.seek(frame)
        start_N.append(now)
        said = image.info.get("duration") or 0
        now += int(said) if said >= _LEAST_MS else _UNSAID_MS
    return Times(np.array(start_N, dtype=np.int64), now)


def _frame(opened: OpenImage, frame: int) -> np.ndarray:
    opened.image.seek(frame)
    shown: Image.Image = opened.image.copy()
    return to_rgb(shown, opened.settings.alpha_ground)
