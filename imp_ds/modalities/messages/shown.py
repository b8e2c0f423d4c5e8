"""Conversations as people see them: who speaks, and what is said, seen and heard, in its order.

Shapes: T frames, H height, W width.
"""

import numpy as np
from PIL import Image

from imp_ds.modalities.messages.view import MessagesView
from imp_ds.modalities.pictures import enlarged, side_by_side

_HIGHEST, _FRAME = 256, 96  # pixels of a picture and of a frame that are shown


def conversation_parts(conversation: list[dict], view: MessagesView) -> list[tuple[str, object]]:
    """The parts of a decoded conversation, as `Modality.parts` has them; videos as strips of frames."""
    found = []
    for turn in conversation:
        found.append(("speaker", turn["role"] if turn.get("loss", True) else f"{turn['role']}, not learned"))
        found += [_part(part, view) for part in turn["content"]]
    return found


def _part(part: dict, view: MessagesView) -> tuple[str, object]:
    kind = part["type"]
    if kind == "image":
        return "picture", _fitted(part[kind], _HIGHEST)
    if kind == "video":
        return "picture", side_by_side([_fitted(frame_HW3, _FRAME) for frame_HW3 in part[kind]])
    return ("waveform", (part[kind], view.sampling_rate)) if kind == "audio" else (kind, part[kind])


def _fitted(picture_HW3: np.ndarray, highest: int) -> np.ndarray:
    """A picture made smaller where it is higher than that, and larger where it could hardly be seen."""
    height, width = picture_HW3.shape[:2]
    if height <= highest:
        return enlarged(picture_HW3)
    size = max(1, round(width * highest / height)), highest
    return np.asarray(Image.fromarray(picture_HW3).resize(size, Image.Resampling.BICUBIC))
