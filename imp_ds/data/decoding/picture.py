"""Pictures as a view sees them: how many pixels are needed of them, and what is changed at random.

Shapes: T frames of a clip, H height, W width.
"""

import math

import numpy as np

from imp_ds.modalities.augmentation import mirror, recolour
from imp_ds.modalities.framing import random_box, resize
from imp_ds.tasks import Augmentation, VisionView


def pixels_needed(view: VisionView, augment: Augmentation) -> tuple[int, int]:
    """(height, width) that a picture should have at least, so that nothing has to be enlarged that was scaled down before."""
    if augment.crop_area is None:
        return view.height, view.width
    # the smallest crop of a picture of this size still has the view's pixels on its shorter side
    factor = math.sqrt(max(augment.crop_aspect[1], 1 / augment.crop_aspect[0]) / augment.crop_area[0])
    return math.ceil(view.height * factor), math.ceil(view.width * factor)


def augmented(clip_THWC: np.ndarray, view: VisionView, augment: Augmentation, rng: np.random.Generator | None) -> np.ndarray:
    """The clip cropped, mirrored and recoloured as `augment` says, the same in all frames; the clip itself without a generator.

    A crop has the view's size, or, where the view keeps a picture's aspect ratio, the crop's own.
    """
    if rng is None:
        return clip_THWC
    if augment.crop_area is not None:
        size = clip_THWC.shape[1:3]
        aspect = size[1] / size[0] if view.keep_aspect else view.width / view.height
        clip_THWC = random_box(size, aspect, augment.crop_area, augment.crop_aspect, rng).cut(clip_THWC)
        if not view.keep_aspect:
            clip_THWC = resize(clip_THWC, (view.height, view.width))
    if augment.flip:
        clip_THWC = mirror(clip_THWC, rng)
    if augment.colour:
        clip_THWC = recolour(clip_THWC, augment.colour, rng)
    return clip_THWC
