"""Samples as pictures for people: laid side by side, enlarged to be seen.

Shapes: H height, W width.
"""

import numpy as np

GREY = 128  # of what was dropped
GAP = 2  # pixels between pictures of one image
SMALLEST = 96  # pixels: pictures are enlarged to at least this height, to be seen


def side_by_side(pictures: list[np.ndarray], axis: int = 1) -> np.ndarray:
    """Pictures [H, W, 3] of one size in a row (axis 1) or a column (axis 0), with white between them."""
    shape = list(pictures[0].shape)
    shape[axis] = GAP
    parts = [part for picture in pictures for part in (picture, np.full(shape, 255, np.uint8))]
    return np.concatenate(parts[:-1], axis)


def enlarged(picture: np.ndarray) -> np.ndarray:
    """Every pixel repeated until the picture is at least SMALLEST high."""
    times = -(-SMALLEST // picture.shape[0])
    return picture.repeat(times, 0).repeat(times, 1)


def steps_of(coordinates: np.ndarray) -> int:
    """Steps of an axis: coordinates are index / steps, so the smallest distance between two tells."""
    places = np.unique(coordinates)
    return round(1 / np.diff(places).min()) if len(places) > 1 else 1
