"""Vision: an image is a clip of one step, a film a clip of several; both are 3-D patches (IMP, section 3.1; VATT).

Shapes: B batch, L tokens of an example, P raw values of a patch (frames * height * width * channels), D width,
T frames, H height, W width, C = 3 channels.
"""

import math

import numpy as np
import torch
from PIL import Image
from torch import nn

from imp_ds.errors import UserError
from imp_ds.modalities.drop_token import drop_tokens
from imp_ds.modalities.positions import FactoredPositions

INPUT_NAMES = ("pixel_values", "pixel_positions")


class VisionEmbedding(nn.Module):
    """Patches and their coordinates to tokens.

    forward takes `pixel_values`, [B, L, P] uint8 in 0..255 (or float, already in [-1, 1]), and `pixel_positions`,
    [B, L, 3] (time, height, width) in [0, 1); it returns tokens [B, L, D] and None: no token is padding.
    """

    def __init__(self, config):
        super().__init__()
        frames, height, width = config.vision_patch
        self.patch = nn.Linear(frames * height * width * config.num_channels, config.hidden_size)
        buckets = [largest // patch for largest, patch in zip(config.vision_max, config.vision_patch)]
        self.positions = FactoredPositions(buckets, config.hidden_size, config.layer_norm_eps)

    def forward(self, pixel_values: torch.Tensor, pixel_positions: torch.Tensor):
        values = pixel_values.to(self.patch.weight.dtype)
        if not pixel_values.is_floating_point():
            values = values / 127.5 - 1.0
        return self.patch(values) + self.positions(pixel_positions).to(values.dtype), None


def preprocess(
    frames_THWC: np.ndarray,
    frames: int,
    height: int,
    width: int,
    patch: tuple[int, int, int],
    *,
    drop_rate: float = 0.0,
    crop_area: tuple[float, float] | None = None,
    flip: bool = False,
    rng: np.random.Generator | None = None,
) -> dict[str, np.ndarray]:
    """One image (T = 1) or film to the model's inputs: `pixel_values` uint8 [L, P] and `pixel_positions` float32 [L, 3].

    `frames` frames are taken uniformly over the film. Each is resized (bicubic) so that it just covers height x width, and
    cropped at the centre. One frame alone is repeated to the depth of a patch: an image is a clip of one step.

    Args:
        frames_THWC: uint8.
        patch: frames, height and width of a patch; they divide the clip, but for frames = 1.
        drop_rate: share of the tokens dropped.
        crop_area: instead of the centre, a random crop with a share of the image's area drawn from this range and an
            aspect ratio between 1/2 and 2 (IMP: (0.5, 1.0)), the same in all frames.
        flip: mirror left and right in half of the calls.
        rng: source of all that is random.

    Raises:
        UserError: the patch does not divide the clip, or something random is asked for without `rng`.
    """
    depth = patch[0]
    if (frames % depth and frames != 1) or height % patch[1] or width % patch[2]:
        raise UserError(
            "the patch does not divide the picture",
            got=f"{frames} frames of {height} x {width} in patches of {patch[0]} x {patch[1]} x {patch[2]}",
            allowed=f"1 frame or a multiple of {depth}; multiples of {patch[1]} x {patch[2]} pixels",
        )
    if rng is None and (crop_area or flip):
        raise UserError("a random crop or flip needs a random generator", fix="pass rng=numpy.random.default_rng(seed)")
    clip_THWC = clip_frames(frames_THWC, frames)
    box = random_box(clip_THWC.shape[1:3], crop_area, rng) if crop_area else centre_box(clip_THWC.shape[1:3], height, width)
    clip_THWC = resize(clip_THWC, box, height, width)
    if flip and rng.random() < 0.5:
        clip_THWC = clip_THWC[:, :, ::-1]
    if frames == 1:
        clip_THWC = np.broadcast_to(clip_THWC, (depth, *clip_THWC.shape[1:]))
    grid = (clip_THWC.shape[0] // depth, height // patch[1], width // patch[2])
    values_LP, positions_L3 = drop_tokens(patchify(clip_THWC, grid, patch), grid, drop_rate, rng)
    return {"pixel_values": values_LP, "pixel_positions": positions_L3}


def clip_indices(total: int, frames: int) -> np.ndarray:
    """Which of `total` frames make a clip: the middles of `frames` equal stretches; a shorter film repeats its last frame."""
    if total <= frames:
        return np.minimum(np.arange(frames), total - 1)
    return (2 * np.arange(frames) + 1) * total // (2 * frames)


def clip_frames(frames_THWC: np.ndarray, frames: int) -> np.ndarray:
    """`frames` frames uniformly over the film, [frames, H, W, C]."""
    return frames_THWC if len(frames_THWC) == frames else frames_THWC[clip_indices(len(frames_THWC), frames)]


def centre_box(size: tuple[int, int], height: int, width: int) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of the largest centred part of an image of `size` (H, W) with the aspect of height x width."""
    scale = min(size[0] / height, size[1] / width)
    top, left = (size[0] - height * scale) / 2, (size[1] - width * scale) / 2
    return left, top, left + width * scale, top + height * scale


def random_box(size: tuple[int, int], area: tuple[float, float], rng: np.random.Generator) -> tuple[float, float, float, float]:
    """A random part of an image (Inception crop, arXiv 1409.4842): share of the area in `area`, aspect ratio in 1/2..2."""
    for _ in range(10):
        surface = size[0] * size[1] * rng.uniform(*area)
        ratio = math.exp(rng.uniform(-math.log(2), math.log(2)))
        height, width = math.sqrt(surface / ratio), math.sqrt(surface * ratio)
        if height <= size[0] and width <= size[1]:
            top, left = rng.uniform(0, size[0] - height), rng.uniform(0, size[1] - width)
            return left, top, left + width, top + height
    return 0.0, 0.0, float(size[1]), float(size[0])


def resize(clip_THWC: np.ndarray, box: tuple[float, float, float, float], height: int, width: int) -> np.ndarray:
    """The part `box` of every frame, resized to height x width; the clip itself where that changes nothing."""
    if clip_THWC.shape[1:3] == (height, width) and box == (0.0, 0.0, width, height):
        return clip_THWC
    images = (Image.fromarray(np.ascontiguousarray(frame_HWC)) for frame_HWC in clip_THWC)
    return np.stack([np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box)) for image in images])


def patchify(clip_THWC: np.ndarray, grid: tuple[int, int, int], patch: tuple[int, int, int]) -> np.ndarray:
    """[T, H, W, C] to [L, P]: patches in the order time, height, width; values in the order frame, row, column, channel."""
    (steps, rows, columns), (depth, high, wide), channels = grid, patch, clip_THWC.shape[-1]
    blocks = clip_THWC.reshape(steps, depth, rows, high, columns, wide, channels)
    return blocks.transpose(0, 2, 4, 1, 3, 5, 6).reshape(steps * rows * columns, depth * high * wide * channels)
