"""Vision: an image is a clip of one step, a video a clip of several; both are 3-D patches (IMP, section 3.1; VATT).

A patch of an image holds its one frame, and the embedding takes it for all frames of a patch. So an image is a fraction of the
bytes on its way from the workers to the device that it would be with the frame repeated, and the embedding as much less work.

Shapes: B batch, L tokens of an example, P raw values of a patch (frames * height * width * channels, of an image those of one
frame), D width, K tokens of it that are kept, T frames, H height, W width, C = 3 channels.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from imp_ds.errors import UserError
from imp_ds.modalities.drop_token import kept_count, kept_tokens, write_tokens
from imp_ds.modalities.positions import FactoredPositions, TablePositions
from imp_ds.modalities.vision.framing import Size, centre_box, grid_within, own_grid, resize

INPUT_NAMES = ("pixel_values", "pixel_positions")
MASK = "pixel_mask"  # a third input, where there is padding


class PatchProjection(nn.Module):
    """A linear layer of patches of several frames. Of a patch of one frame it is the layer of that frame repeated: each of its
    values meets the sum of the weights of all frames.

    No nn.Linear, which a quantizer would replace by a layer that knows nothing of frames.
    """

    def __init__(self, frames: int, values: int, width: int):
        super().__init__()
        self.frames, self.values, self.in_features, self.out_features = frames, values, frames * values, width
        like = nn.Linear(self.in_features, width)
        self.weight, self.bias = like.weight, like.bias

    def forward(self, values_BLP: torch.Tensor) -> torch.Tensor:
        if values_BLP.shape[-1] == self.in_features:
            return nn.functional.linear(values_BLP, self.weight, self.bias)
        exact = torch.promote_types(self.weight.dtype, torch.float32)
        weight_DP = self.weight.unflatten(1, (self.frames, self.values)).sum(1, dtype=exact).to(self.weight.dtype)
        return nn.functional.linear(values_BLP, weight_DP, self.bias)


class VisionEmbedding(nn.Module):
    """Patches and their coordinates to tokens.

    forward takes `pixel_values`, [B, L, P] uint8 in 0..255 (or float, already in [-1, 1]), of all frames of a patch or of the one
    of an image, and `pixel_positions`, [B, L, 3] (time, height, width) in [0, 1); it returns tokens [B, L, D], of which the first
    are the registers, if there are any, and None, or, where `pixel_mask` [B, L] is given, False at padding.
    """

    def __init__(self, config):
        super().__init__()
        frames, height, width = config.vision_patch
        self.patch = PatchProjection(frames, height * width * config.num_channels, config.hidden_size)
        buckets = [largest // patch for largest, patch in zip(config.vision_max, config.vision_patch)]
        width, eps = config.hidden_size, config.layer_norm_eps
        factored = config.vision_positions == "factored"
        self.positions = FactoredPositions(buckets, width, eps) if factored else TablePositions(buckets, width)
        self.registers = nn.Embedding(config.vision_registers, width) if config.vision_registers else None
        self.norm = nn.LayerNorm(width, eps=eps) if config.vision_norm else nn.Identity()

    def forward(self, pixel_values: torch.Tensor, pixel_positions: torch.Tensor, pixel_mask: torch.Tensor | None = None):
        values = pixel_values.to(self.patch.weight.dtype)
        if not pixel_values.is_floating_point():
            values = values / 127.5 - 1.0
        tokens_BLD = self.patch(values) + self.positions(pixel_positions).to(values.dtype)
        if self.registers is not None:
            index_R = torch.arange(self.registers.num_embeddings, device=tokens_BLD.device)
            registers_BRD = self.registers(index_R).to(values.dtype).expand(len(tokens_BLD), -1, -1)
            tokens_BLD = torch.cat([registers_BRD, tokens_BLD], dim=1)
            pixel_mask = None if pixel_mask is None else nn.functional.pad(pixel_mask, (len(index_R), 0), value=True)
        return self.norm(tokens_BLD), None if pixel_mask is None else pixel_mask.bool()


def preprocess(
    clips: Sequence[np.ndarray],
    frames: int,
    size: Size,
    patch: tuple[int, int, int],
    *,
    keep_aspect: bool = False,
    naflex: bool = False,
    largest: Size | None = None,
    drop_rate: float = 0.0,
    rngs: Sequence[np.random.Generator] | None = None,
    empty: Callable = np.empty,
) -> dict[str, np.ndarray]:
    """Images (T = 1) or videos to the model's inputs: `pixel_values` uint8 [B, K, P] and `pixel_positions` float32 [B, K, 3].

    `frames` frames are taken uniformly over a video. Each is resized so that it just covers `size`, and cut at the centre. One
    frame alone is a step by itself, and P are the values of that frame.

    Args:
        clips: uint8 [T, H, W, 3] each.
        size: (height, width) of a picture.
        patch: frames, height and width of a patch; they divide the clip, but for frames = 1.
        keep_aspect: instead of cutting it, see the whole picture on a grid of its own aspect ratio with as many patches as `size`
            has. What the grid has above that is left out, at random with `rngs`, else evenly.
        naflex: see the whole picture on the largest grid of its own aspect ratio within that many patches, and leave none out.
            There is `pixel_mask`, bool [B, K], then, False at the padding behind an image's own.
        largest: under keep_aspect and naflex, the (height, width) that a picture may have.
        drop_rate: share of the tokens dropped.
        rngs: one for each clip, the source of all that is random.
        empty: makes the arrays, as `numpy.empty` does; for memory of one's own.

    Raises:
        UserError: the patch does not divide the clip, or something random is asked for without `rngs`.
    """
    depth = patch[0]
    if (frames % depth and frames != 1) or size[0] % patch[1] or size[1] % patch[2]:
        raise UserError(
            "the patch does not divide the picture",
            got=f"{frames} frames of {size[0]} x {size[1]} in patches of {patch[0]} x {patch[1]} x {patch[2]}",
            allowed=f"1 frame or a multiple of {depth}; multiples of {patch[1]} x {patch[2]} pixels",
            fix="in a recipe: views.vision.frames, .height and .width of a task or an evaluation, or model.vision_patch",
        )
    steps, grid = max(1, frames // depth), (size[0] // patch[1], size[1] // patch[2])
    budget = steps * math.prod(grid)
    shape = len(clips), kept_count(budget, drop_rate)
    values_BKP = empty((*shape, math.prod(patch) * 3 // (depth if frames == 1 else 1)), np.uint8)
    positions_BK3 = empty((*shape, 3), np.float32)
    most, count_B = largest and (largest[0] // patch[1], largest[1] // patch[2]), np.full(len(clips), shape[1])
    for index, clip_THWC in enumerate(clips):
        clip_THWC, own_budget = clip_frames(clip_THWC, frames), budget
        if keep_aspect:
            rows, columns = own_grid(clip_THWC.shape[1:3], grid, patch[1:], most)
        elif naflex:
            rows, columns = grid_within(clip_THWC.shape[1:3], math.prod(grid), patch[1:], most)
            own_budget = steps * rows * columns
            count_B[index] = kept_count(own_budget, drop_rate)
        else:
            rows, columns = grid
            clip_THWC = centre_box(clip_THWC.shape[1:3], size[1] / size[0]).cut(clip_THWC)
        blocks = patches(resize(clip_THWC, (rows * patch[1], columns * patch[2])), (steps, rows, columns), patch)
        kept = kept_tokens(steps * rows * columns, own_budget, drop_rate, None if rngs is None else rngs[index])
        own = count_B[index]
        write_tokens(blocks, (steps, rows, columns), kept, values_BKP[index, :own], positions_BK3[index, :own])
        values_BKP[index, own:], positions_BK3[index, own:] = 0, 0
    mask = {MASK: np.arange(shape[1]) < count_B[:, None]} if naflex else {}
    return dict(zip(INPUT_NAMES, (values_BKP, positions_BK3))) | mask


def clip_indices(total: int, frames: int, sampling: str = "uniform", stride: int = 1) -> np.ndarray:
    """Which of `total` frames make a clip; a video that has too few repeats its last frame.

    sampling: "uniform": the middles of `frames` equal stretches; "stride": every stride-th from the beginning; "clip": every
        stride-th of the middle.

    Raises UserError for another sampling.
    """
    if sampling not in ("uniform", "stride", "clip"):
        raise UserError("unknown sampling of frames", got=repr(sampling), allowed="uniform, stride, clip")
    if sampling == "uniform":
        index_T = np.arange(frames) if total <= frames else (2 * np.arange(frames) + 1) * total // (2 * frames)
    else:
        spare = max(0, total - (frames - 1) * stride - 1) if sampling == "clip" else 0
        index_T = spare // 2 + stride * np.arange(frames)
        index_T = np.where(index_T < total, index_T, index_T[index_T < total].max())
    return np.minimum(index_T, total - 1)


def clip_frames(frames_THWC: np.ndarray, frames: int) -> np.ndarray:
    """`frames` frames uniformly over the video, [frames, H, W, C]."""
    return frames_THWC if len(frames_THWC) == frames else frames_THWC[clip_indices(len(frames_THWC), frames)]


def patches(clip_THWC: np.ndarray, grid: tuple[int, int, int], patch: tuple[int, int, int]) -> np.ndarray:
    """A view of the clip by patches: [steps, rows, columns, frames, height, width, C]; one frame alone is a step."""
    (steps, rows, columns), (_, high, wide), channels = grid, patch, clip_THWC.shape[-1]
    blocks = clip_THWC.reshape(steps, len(clip_THWC) // steps, rows, high, columns, wide, channels)
    return blocks.transpose(0, 2, 4, 1, 3, 5, 6)


def grid_of(buckets: Sequence[int], patch: Sequence[int], channels: int, patches: int, values: int) -> tuple[int, int, int]:
    """Steps, rows and columns of a picture or a video of that many patches of so many values, from the
    patches of the largest clip on each axis. Raises UserError where they do not follow from the number."""
    steps, rows, columns = buckets
    if values * patch[0] == math.prod(patch) * channels:
        steps = 1  # one frame
    squares = ((patches // n**2, n) for n in (math.isqrt(patches // s) for s in range(1, steps + 1)) if n and patches % n**2 == 0)
    fitting = sorted({(s, n, n) for s, n in squares if s <= steps and n <= min(rows, columns) and s * n * n == patches})
    if len(fitting) != 1:
        raise UserError(
            "the positions of patches cannot be derived from their number",
            got=f"{patches} patches, which make " + (" or ".join("x".join(map(str, g)) for g in fitting) or "no square"),
            allowed="a square picture, or a video of square frames whose number of steps is the only one that fits",
            fix="give pixel_positions, as ImpProcessor returns them",
        )  # fmt: skip
    return fitting[0]
