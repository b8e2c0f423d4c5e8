"""Pictures as a view sees them: images and videos decoded, and changed at random.

Shapes: T frames of a clip, H height, W width.
"""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from imp_ds.modalities.decoding_settings import DEFAULTS, DecodingSettings
from imp_ds.modalities.in_turn import in_turn, opened_in_parts
from imp_ds.modalities.media import BadSample, Media
from imp_ds.modalities.media_cache import MediaCache
from imp_ds.modalities.vision.animation import is_animated, read_animation
from imp_ds.modalities.vision.augmentation import mirror, recolour
from imp_ds.modalities.vision.framing import random_box, resize
from imp_ds.modalities.vision.image import OpenImage, open_image
from imp_ds.modalities.vision.video import VIDEOS, is_video, read_video
from imp_ds.modalities.vision.view import VisionAugmentation, VisionView


def read_clips(
    media: Sequence[Media | BadSample], view: VisionView, rngs: Sequence[np.random.Generator | None], cache: MediaCache,
    augment: VisionAugmentation, settings: DecodingSettings = DEFAULTS,
) -> list[np.ndarray | BadSample]:  # fmt: skip
    """The frames that the view wants of each image (T = 1) or video, changed as `augment` says: uint8 [T, H, W, 3] each.

    Without a generator nothing is changed. With one, a crop has the view's size, or, where the view keeps a picture's aspect
    ratio, the crop's own; all frames are changed alike. What cannot be decoded has a BadSample instead.
    """
    needed, clips, videos = pixels_needed(view, augment), [], set()

    def opened(media: Media) -> OpenImage | None:
        """None for what need not be opened yet, and for videos."""
        if media.suffix in VIDEOS or (media.name, needed) in cache:
            return None
        try:
            return open_image(media, needed, settings)
        except BadSample as bad:
            if bad.reason != "unreadable image" or not is_video(media):
                raise
            videos.add(media.name)  # whatever its name ends in
            return None

    def read(image: OpenImage | None, media: Media, rng) -> np.ndarray:
        if image is None and (media.suffix in VIDEOS or media.name in videos):
            try:
                return read_video(media, view, rng, cache, settings)
            except BadSample as bad:
                image = _image_after_all(media, needed, settings, bad)
        if view.frames > 1 and image is not None and is_animated(image):
            return read_animation(image, view, rng)
        return cache.get((media.name, needed), lambda: image.pixels())[None]

    for part, images in opened_in_parts(opened, media):
        clips += _augmented(in_turn(read, images, media[part], rngs[part]), view, augment, rngs[part])
    return clips


def _image_after_all(media: Media, needed: tuple[int, int], settings: DecodingSettings, bad: BadSample) -> OpenImage:
    """The image that is named as a video. Raises `bad`, which the video was, where it is none."""
    if bad.reason not in ("unreadable video", "no pictures"):
        raise bad
    try:
        return open_image(media, needed, settings)
    except BadSample:
        raise bad from None


def pixels_needed(view: VisionView, augment: VisionAugmentation) -> tuple[int, int]:
    """(height, width) that a picture should have at least, so that nothing has to be enlarged that was scaled down before."""
    if augment.crop_area is None:
        return view.height, view.width
    # the smallest crop of a picture of this size still has the view's pixels on its shorter side
    factor = math.sqrt(max(augment.crop_aspect[1], 1 / augment.crop_aspect[0]) / augment.crop_area[0])
    return math.ceil(view.height * factor), math.ceil(view.width * factor)


def _augmented(clips: list, view: VisionView, augment: VisionAugmentation, rngs: Sequence[np.random.Generator | None]) -> list:
    if not rngs or rngs[0] is None:
        return clips
    if augment.crop_area is not None:
        clips = in_turn(partial(_cropped, view, augment), clips, rngs)
        if not view.own_aspect:
            clips = in_turn(partial(resize, size=(view.height, view.width)), clips)
    if augment.flip:
        clips = in_turn(mirror, clips, rngs)
    if augment.colour:
        clips = in_turn(lambda clip_THWC, rng: recolour(clip_THWC, augment.colour, rng), clips, rngs)
    return clips


def _cropped(view: VisionView, augment: VisionAugmentation, clip_THWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    size = clip_THWC.shape[1:3]
    aspect = size[1] / size[0] if view.own_aspect else view.width / view.height
    return random_box(size, aspect, augment.crop_area, augment.crop_aspect, rng).cut(clip_THWC)
