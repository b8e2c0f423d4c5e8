"""Patches of a batch back to pictures and strips of frames. Dropped tokens are grey.

Shapes: B samples, L tokens of an example, P raw values of a patch, T frames, H height, W width.
"""

import numpy as np

from imp_ds.modalities.pictures import GREY, enlarged, side_by_side, steps_of
from imp_ds.modalities.vision.patches import INPUT_NAMES, MASK


def clips_BTHW3(inputs: dict, view, patch: list[int]) -> np.ndarray:
    """Frames of each sample, uint8 [B, T, H, W, 3], from `pixel_values` (uint8, patches in the order frame, row, column,
    channel) and `pixel_positions`. An image has one frame, and so have its patches. Under `keep_aspect` and `naflex` only the
    samples of one batch that have the same grid can be shown together: give one."""
    deep, high, wide = patch
    grid = (max(1, view.frames // deep), view.height // high, view.width // wide)
    if MASK in inputs:
        (own,) = inputs[MASK].sum(1).tolist()  # one sample
        inputs = {name: inputs[name][:, :own] for name in INPUT_NAMES}
    if view.own_aspect:
        grid = (grid[0], *(steps_of(inputs["pixel_positions"].numpy()[..., axis]) for axis in (1, 2)))
    values = inputs["pixel_values"].numpy()
    deep = values.shape[-1] // (high * wide * 3)
    cells = np.full((len(values), *grid, deep, high, wide, 3), GREY, dtype=np.uint8)
    index = np.rint(inputs["pixel_positions"].numpy() * np.array(grid)).astype(int)
    rows = np.arange(len(values))[:, None]
    cells[rows, index[..., 0], index[..., 1], index[..., 2]] = values.reshape(*values.shape[:2], deep, high, wide, 3)
    clips = cells.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(len(values), grid[0] * deep, grid[1] * high, grid[2] * wide, 3)
    return clips[:, : view.frames]


def vision_pictures(inputs: dict, view, patch: list[int]) -> dict[str, np.ndarray]:
    """"pictures" in a row, or "frame_strips", a video in each row; uint8 [H, W, 3]."""
    each = [{name: tensor[i : i + 1] for name, tensor in inputs.items()} for i in range(len(inputs["pixel_values"]))]
    clips = [clips_BTHW3(one, view, patch)[0] for one in each]
    if view.frames == 1:
        return {"pictures": side_by_side([enlarged(clip[0]) for clip in clips])}
    return {"frame_strips": side_by_side([side_by_side([enlarged(frame) for frame in clip]) for clip in clips], axis=0)}
