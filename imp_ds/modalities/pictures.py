"""Samples as pictures for people: laid side by side, enlarged to be seen.

Shapes: H height, W width.
"""

import numpy as np

GREY = 128  # of what was dropped
GAP = 2  # pixels between pictures of one image
SMALLEST = 96  # pixels: pictures are enlarged to at least this height, to be seen


def side_by_side(pictures: list[np.ndarray], axis: int = 1) -> np.ndarray:
    """Pictures [H, W, 3] in a row (axis 1) or a column (axis 0), with white between them, and beside those that are smaller."""
    other = 1 - axis
    most, parts = max(picture.shape[other] for picture in pictures), []
    for picture in pictures:
        spare = [(0, 0), (0, 0), (0, 0)]
        spare[other], spare[axis] = (0, most - picture.shape[other]), (0, GAP)
        parts.append(np.pad(picture, spare, constant_values=255))
    row = np.concatenate(parts, axis)
    return row[:, :-GAP] if axis == 1 else row[:-GAP]


def enlarged(picture: np.ndarray) -> np.ndarray:
    """Every pixel repeated until the picture is at least SMALLEST high."""
    times = -(-SMALLEST // picture.shape[0])
    return picture.repeat(times, 0).repeat(times, 1)


def steps_of(coordinates: np.ndarray) -> int:
    """Steps of an axis: coordinates are index / steps, so the smallest distance between two tells."""
    places = np.unique(coordinates)
    return round(1 / np.diff(places).min()) if len(places) > 1 else 1
