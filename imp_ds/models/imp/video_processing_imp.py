"""ImpVideoProcessor: videos to `pixel_values` and `pixel_positions`, the same inputs as images have."""

import numpy as np
from PIL import Image
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_processing_utils import BatchFeature
from transformers.video_processing_utils import BaseVideoProcessor

from imp_ds.errors import UserError
from imp_ds.modalities.decoding_settings import WHITE
from imp_ds.modalities.vision import patches as vision
from imp_ds.modalities.vision.picture_files import is_file
from imp_ds.modalities.vision.pixels import size_pair, to_three_channels, to_uint8
from imp_ds.models.imp.image_processing_imp import channels_last, patches_of, size_dict, to_frame
from imp_ds.models.imp.keywords import ImpVideoProcessorKwargs, check_keywords
from imp_ds.models.imp.media_files import video_of
from imp_ds.models.imp.picture_values import SWITCHES, check_rgb, chosen, set_switches

_CHANNELS = (1, 3, 4)
_ALLOWED = (
    "an array [T, H, W, C], [T, C, H, W] or [T, H, W], a list of images, or a path, bytes or an open file; "
    "a list of those is a batch"
)
_SWITCHES = {**SWITCHES, "do_sample_frames": True}
_FIELDS = ("frames", "sampling", "stride", "size", "patch", "largest", "ground", *_SWITCHES)


class ImpVideoProcessor(BaseVideoProcessor):
    """Takes `frames` frames of each video, resizes them to `size` and cuts them into 3-D patches.

    Args:
        frames: frames of a clip, 1 or a multiple of the patch's depth.
        sampling: "uniform" over all of a video, "stride" from its beginning, "clip" from its middle (`vision.clip_indices`).
        stride: frames from one to the next, under "stride" and "clip".
        size: (height, width), one number for both, or {"height": h, "width": w}.
        patch: frames, height and width of a patch, as `ImpConfig.vision_patch`.
        largest: (height, width) that the model has positions for, which bounds what `keep_aspect` may choose; None: no bound.
        ground: colour (R, G, B) that transparent frames lie on.
        kwargs: the switches of `ImpVideoProcessorKwargs`, do_resize to do_convert_rgb, and do_sample_frames.
    """

    model_input_names = list(vision.INPUT_NAMES)
    valid_kwargs = ImpVideoProcessorKwargs
    do_convert_rgb, do_resize = SWITCHES["do_convert_rgb"], SWITCHES["do_resize"]  # transformers looks for them in the class

    def __init__(
        self, frames=16, size=256, patch=(4, 16, 16), largest=None, ground=WHITE, sampling="uniform", stride=1, **kwargs
    ):
        # The constructors between fill in the fields of the torchvision pipeline, which is neither used nor needed here.
        set_switches(self, kwargs, _SWITCHES)
        ImageProcessingMixin.__init__(self, **kwargs)
        self.frames, self.sampling, self.stride = frames, sampling, stride
        self.size = size_dict(size)
        self.patch = list(patch)
        self.largest = None if largest is None else size_dict(largest)
        self.ground = list(ground)

    def preprocess(self, videos, **kwargs) -> BatchFeature:
        """One video or a list of videos to a BatchFeature of `pixel_values` [B, L, P] and `pixel_positions` [B, L, 3].

        kwargs: `ImpVideoProcessorKwargs`, which override what is stored.

        Raises:
            UserError: something that is no video, or sizes that do not fit.
        """
        check_keywords("the video processor", kwargs, self.valid_kwargs)
        options = chosen(self, kwargs)
        frames = options["frames"] = options["frames"] if options["do_sample_frames"] else None
        clips = [to_clip(video, self.ground, options) for video in video_list(videos)]
        lengths = sorted({len(clip) for clip in clips})
        if frames is None and len(lengths) > 1:
            fix = "leave do_sample_frames=False out"
            raise UserError("the videos of a batch differ in the number of their frames", got=lengths[:4], fix=fix)
        return patches_of(self, clips, frames or lengths[0], options)

    def __call__(self, videos, **kwargs) -> BatchFeature:
        return self.preprocess(videos, **kwargs)

    def to_dict(self) -> dict:
        return {**{name: getattr(self, name) for name in _FIELDS}, "video_processor_type": type(self).__name__}


def video_list(videos) -> list:
    """The batch as a list of single videos. A list of images (PIL, or arrays of 2 or 3 dimensions) is one video; lists of videos
    by sample are one list."""
    if isinstance(videos, (list, tuple)):
        videos = [video for entry in videos for video in (entry if _holds_videos(entry) else [entry])]
        if not videos:
            raise UserError("there are no videos in the list", allowed=_ALLOWED)
        first = videos[0]
        is_frame = isinstance(first, Image.Image) or getattr(first, "ndim", 0) in (2, 3)
        return [videos] if is_frame else videos
    return list(videos) if getattr(videos, "ndim", 0) == 5 else [videos]


def _holds_videos(entry) -> bool:
    """Whether an entry of the batch is itself a list of videos, or of none."""
    return isinstance(entry, (list, tuple)) and all(
        isinstance(part, (list, tuple)) or getattr(part, "ndim", 0) == 4 for part in entry
    )


def to_clip(video, ground: list[int], options: dict) -> np.ndarray:
    """The frames of a video in any layout that `options` ask for, uint8 [T, H, W, 3]; only these are converted."""
    needed = size_pair(options["size"]) if options["do_resize"] else None
    if isinstance(video, (list, tuple)) and len(video):
        images = [to_frame(video[place], ground, options, needed) for place in _places(len(video), options)]
        if len({image.shape for image in images}) > 1:
            raise UserError("the frames of a video differ in size", got=sorted({image.shape[:2] for image in images}))
        return np.stack(images)
    if is_file(video):
        enough = needed or size_pair(options["size"])
        return video_of(video, options["frames"], options["sampling"], options["stride"], enough, ground)
    clip = np.asarray(video) if hasattr(video, "__array__") else None
    if clip is not None and clip.ndim == 4:
        clip = channels_last(clip, options["input_data_format"])
    if clip is not None and clip.ndim == 3 and clip.shape[-1] not in _CHANNELS:
        clip = clip[..., None]
    if clip is not None and clip.ndim == 4 and clip.shape[-1] not in _CHANNELS and clip.shape[1] in _CHANNELS:
        clip = clip.transpose(0, 2, 3, 1)
    if clip is None or clip.ndim != 4 or clip.shape[-1] not in _CHANNELS or not clip.size:
        got = repr(video)[:100] if clip is None else f"an array of shape {clip.shape}"
        raise UserError("this is no video", got=got, allowed=_ALLOWED)
    if not options["do_convert_rgb"]:
        check_rgb(clip[0])
    return to_three_channels(to_uint8(clip[_places(len(clip), options)]), tuple(ground))


def _places(total: int, options: dict) -> np.ndarray:
    """Which of `total` frames are taken."""
    if options["frames"] is None:
        return np.arange(total)
    return vision.clip_indices(total, options["frames"], options["sampling"], options["stride"])
