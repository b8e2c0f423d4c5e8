"""When the frames of a video are shown, and which of them a view takes (IMP, section 4.1: stride 2).

Shapes: N frames of the video, T wanted ones.
"""

from typing import NamedTuple

import numpy as np

from imp_ds.modalities.vision.view import VisionView


class Times(NamedTuple):
    """When the frames of a video are shown, in a unit of its own: start_N ascending, and the end of the last."""

    start_N: np.ndarray
    end: int


def chosen_frames(times: Times, view: VisionView, rng: np.random.Generator | None) -> np.ndarray:
    """Which frames are wanted, ascending and without repetition, int64 [T].

    Of a constant frame rate "uniform" takes the middles of `view.frames` equal stretches, as `vision.clip_indices` does.
    """
    total, begin, duration = len(times.start_N), int(times.start_N[0]), times.end - int(times.start_N[0])
    if view.sampling == "uniform":
        if total <= view.frames:
            return np.arange(total)
        at_T = [begin + (2 * k + 1) * duration // (2 * view.frames) for k in range(view.frames)]
    else:
        first = 0
        if view.sampling == "clip":
            spare = max(0, total - (view.frames - 1) * view.stride - 1)
            first = spare // 2 if rng is None else int(rng.integers(spare + 1))
        places = [first + k * view.stride for k in range(view.frames)]
        at_T = [begin + place * duration // total for place in places if place < total]
    return np.unique(np.searchsorted(times.start_N, at_T, side="right") - 1)
