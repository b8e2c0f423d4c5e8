"""ImpVideoProcessor: films to `pixel_values` and `pixel_positions`, the same inputs as images have."""

import numpy as np
from PIL import Image
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_processing_utils import BatchFeature
from transformers.video_processing_utils import BaseVideoProcessor

from imp_ds.decoding_settings import WHITE
from imp_ds.errors import UserError
from imp_ds.modalities import vision
from imp_ds.models.imp.image_processing_imp import (
    channels_last,
    one_for_all,
    opened,
    size_dict,
    size_pair,
    to_rgb,
    to_three_channels,
    to_uint8,
    upright,
)
from imp_ds.models.imp.keywords import check_keywords, keywords_of

_CHANNELS = (1, 3, 4)
_ALLOWED = "an array [T, H, W, C], [T, C, H, W] or [T, H, W], or a list of images; a list of those is a batch"


class ImpVideoProcessor(BaseVideoProcessor):
    """Takes `frames` frames uniformly over each film, resizes them to `size` and cuts them into 3-D patches.

    Args:
        frames: frames of a clip, 1 or a multiple of the patch's depth.
        size: (height, width), one number for both, or {"height": h, "width": w}.
        patch: frames, height and width of a patch, as `ImpConfig.vision_patch`.
        largest: (height, width) that the model has positions for, which bounds what `keep_aspect` may choose; None: no bound.
        ground: colour (R, G, B) that transparent frames lie on.
    """

    model_input_names = list(vision.INPUT_NAMES)

    def __init__(self, frames=16, size=256, patch=(4, 16, 16), largest=None, ground=WHITE, **kwargs):
        # The constructors between fill in the fields of the torchvision pipeline, which is neither used nor needed here.
        ImageProcessingMixin.__init__(self, **kwargs)
        self.frames = frames
        self.size = size_dict(size)
        self.patch = list(patch)
        self.largest = None if largest is None else size_dict(largest)
        self.ground = list(ground)

    def preprocess(
        self, videos, *, frames=None, size=None, keep_aspect=False, drop_rate=0.0, rng=None, input_data_format=None,
        return_tensors=None,
    ) -> BatchFeature:  # fmt: skip
        """One film or a list of films to a BatchFeature of `pixel_values` [B, L, P] and `pixel_positions` [B, L, 3].

        The keywords override the stored view and add what a task's view asks for: see `imp_ds.modalities.vision.preprocess`.
        input_data_format: "channels_first" or "channels_last" of arrays; None tells it by the shape.

        Raises:
            UserError: something that is no film, or sizes that do not fit.
        """
        frames = self.frames if frames is None else frames
        clips = [to_clip(video, frames, tuple(self.ground), input_data_format) for video in video_list(videos)]
        inputs = vision.preprocess(
            clips, frames, size_pair(self.size if size is None else size), self.patch, keep_aspect=keep_aspect,
            largest=self.largest and size_pair(self.largest), drop_rate=drop_rate, rngs=one_for_all(rng, clips),
        )  # fmt: skip
        return BatchFeature(inputs, tensor_type=return_tensors)

    def __call__(self, videos, **kwargs) -> BatchFeature:
        check_keywords("the video processor", kwargs, keywords_of(self.preprocess))
        return self.preprocess(videos, **kwargs)

    def to_dict(self) -> dict:
        fields = {name: getattr(self, name) for name in ("frames", "size", "patch", "largest", "ground")}
        return {**fields, "video_processor_type": type(self).__name__}


def video_list(videos) -> list:
    """The batch as a list of single films. A list of images (PIL, or arrays of 2 or 3 dimensions) is one film."""
    if isinstance(videos, (list, tuple)):
        if not videos:
            raise UserError("there are no films in the list", allowed=_ALLOWED)
        first = videos[0]
        is_frame = isinstance(first, Image.Image) or getattr(first, "ndim", 0) in (2, 3)
        return [videos] if is_frame else list(videos)
    return list(videos) if getattr(videos, "ndim", 0) == 5 else [videos]


def to_clip(
    video, frames: int, ground: tuple[int, int, int] = WHITE, input_data_format: str | None = None
) -> np.ndarray:
    """`frames` frames uniformly over a film in any layout, uint8 [frames, H, W, 3]; only these are converted."""
    if isinstance(video, (list, tuple)) and len(video):
        shown = [channels_last(opened(video[i]), input_data_format) for i in vision.clip_indices(len(video), frames)]
        images = [to_rgb(upright(image), ground) for image in shown]
        if len({image.shape for image in images}) > 1:
            raise UserError("the frames of a film differ in size", got=sorted({image.shape[:2] for image in images}))
        return np.stack(images)
    film = np.asarray(video) if hasattr(video, "__array__") else None
    if film is not None and film.ndim == 4:
        film = channels_last(film, input_data_format)
    if film is not None and film.ndim == 3 and film.shape[-1] not in _CHANNELS:
        film = film[..., None]
    if film is not None and film.ndim == 4 and film.shape[-1] not in _CHANNELS and film.shape[1] in _CHANNELS:
        film = film.transpose(0, 2, 3, 1)
    if film is None or film.ndim != 4 or film.shape[-1] not in _CHANNELS or not film.size:
        raise UserError("this is no film", got=repr(video)[:100] if film is None else f"an array of shape {film.shape}",
                        allowed=_ALLOWED, fix="decode files first (imp_ds.data.decoding)")  # fmt: skip
    return to_three_channels(to_uint8(vision.clip_frames(film, frames)), ground)
