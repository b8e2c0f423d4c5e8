"""One file of an image, a video or a recording, outside of any source: what a model's processor asks for, read as in training.

Shapes: T frames, H height, W width, N samples.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from imp_ds.errors import UserError
from imp_ds.modalities.audio.recordings import Waveform, open_recording
from imp_ds.modalities.decoding_settings import DecodingSettings
from imp_ds.modalities.media import BadSample, Media
from imp_ds.modalities.media_cache import MediaCache
from imp_ds.modalities.vision.clips import read_clips
from imp_ds.modalities.vision.image import read_image
from imp_ds.modalities.vision.video import read_video
from imp_ds.modalities.vision.view import VisionAugmentation, VisionView


def video(
    path: Path | None, data: bytes | None, frames: int | None, sampling: str, stride: int, size: tuple[int, int],
    ground: Sequence[int],
) -> np.ndarray:  # fmt: skip
    """`frames` frames over the time of a video or an animated picture, uint8 [T, H, W, 3]; all that there are, when it has fewer
    or for None.

    sampling, stride, size: those of a VisionView; ground: colour that transparent frames lie on.

    Raises UserError for a file that is neither, is damaged, or beyond the bounds of `DecodingSettings`.
    """
    settings = DecodingSettings(alpha_ground=tuple(ground))
    if frames is None:
        frames, sampling = settings.video_frames, "uniform"
    view = VisionView(frames=frames, sampling=sampling, stride=stride, height=size[0], width=size[1])
    media = _media(path, data, "video")
    (clip,) = read_clips([media], view, [None], MediaCache(0), VisionAugmentation(), settings)
    if type(clip) is BadSample and clip.reason == "unreadable image":  # no picture, or a video without its suffix
        try:
            clip = read_video(media, view, None, MediaCache(0), settings)
        except BadSample as bad:
            clip = bad
    if type(clip) is BadSample:
        raise UserError("a video cannot be read", got=str(clip), allowed="files of videos and of animated pictures, or arrays")
    return clip


def image(path: Path | None, data: bytes | None) -> np.ndarray:
    """A picture at its own size, uint8 [H, W, 3]. Raises UserError as `video` does."""
    try:
        return read_image(_media(path, data, "image"), DecodingSettings())
    except BadSample as bad:
        raise UserError("an image cannot be read", got=str(bad), allowed="files of images, or arrays") from None


def audio(path: Path | None, data: bytes | None) -> Waveform:
    """The samples of a recording or of a video's audio, float32 [N], and its rate. Raises UserError as `video` does."""
    try:
        return open_recording(_media(path, data, "audio"), DecodingSettings()).samples()
    except BadSample as bad:
        raise UserError("audio cannot be read", got=str(bad), allowed="files of recordings and of videos, or arrays") from None


def _media(path: Path | None, data: bytes | None, kind: str) -> Media:
    return Media(kind, data=data) if path is None else Media(str(path), path=path)
