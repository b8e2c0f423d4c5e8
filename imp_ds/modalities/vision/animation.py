"""Animated GIF, WebP, PNG and AVIF as videos: their frames by their durations.

Shapes: N frames of the animation, T wanted ones, H height, W width.
"""

from contextlib import suppress

import numpy as np

from imp_ds.modalities.media import BadSample
from imp_ds.modalities.vision.image import OpenImage, bad_image, check_pixels
from imp_ds.modalities.vision.picture_files import bounded
from imp_ds.modalities.vision.pixels import to_rgb, upright
from imp_ds.modalities.vision.times import Times, chosen_frames
from imp_ds.modalities.vision.view import VisionView

_FORMATS = {"GIF", "WEBP", "PNG", "AVIF"}  # the several pictures of a TIFF, an MPO or a HEIC file follow no time
_UNSAID_MS = 100  # browsers show a frame without a duration, or of 10 ms or less, for so long
_LEAST_MS = 11


def is_animated(image: OpenImage) -> bool:
    """Whether an image has several frames."""
    with suppress(Exception):  # what is damaged is found out when it is read
        return image.image.format in _FORMATS and getattr(image.image, "n_frames", 1) > 1 + _first(image)
    return False


def read_animation(opened: OpenImage, view: VisionView, rng: np.random.Generator | None) -> np.ndarray:
    """The frames that `view` wants: uint8 [T, H, W, 3]; closes the file. Raises BadSample for what is damaged or too large."""
    with opened.file:
        try:
            with bounded(opened.settings):
                return _frames(opened, view, rng)
        except Exception as error:  # damaged files make Pillow raise whatever its parsers run into
            raise bad_image(opened.name, error) from error


def _frames(opened: OpenImage, view: VisionView, rng: np.random.Generator | None) -> np.ndarray:
    frames_T = _first(opened) + chosen_frames(_times(opened), view, rng)
    check_pixels(opened.name, opened.image.width, opened.image.height, opened.settings)  # a frame may have made it larger
    if len(frames_T) * opened.image.width * opened.image.height > opened.settings.video_pixels:
        raise BadSample("too large", f"{opened.name}: more pixels than data.decoding.video_pixels")
    return np.stack([_frame(opened, frame) for frame in frames_T.tolist()])


def _first(opened: OpenImage) -> int:
    """The number of the frame that is shown first: a PNG file may begin with a picture for those who know no animations."""
    return int(getattr(opened.image, "default_image", False))


def _times(opened: OpenImage) -> Times:
    """When each frame that is shown begins, in milliseconds."""
    image, start_N, now = opened.image, [], 0
    if image.n_frames > opened.settings.video_frames:
        raise BadSample("too large", f"{opened.name}: more frames than data.decoding.video_frames")
    for frame in range(_first(opened), image.n_frames):
        image.seek(frame)
        image.load()  # WebP and AVIF tell the duration with the pixels alone
        start_N.append(now)
        stated = image.info.get("duration") or 0
        now += int(stated) if stated >= _LEAST_MS else _UNSAID_MS
    return Times(np.array(start_N, dtype=np.int64), now)


def _frame(opened: OpenImage, frame: int) -> np.ndarray:
    opened.image.seek(frame)
    opened.image.load()
    return to_rgb(upright(opened.image), opened.settings.alpha_ground)
