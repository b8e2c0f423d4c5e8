"""Images, videos and recordings that a processor is given as files, decoded as training decodes them.

The decoders need PyAV and libsndfile, which someone who gives arrays does without: they stand above the models, in imp_ds.data,
and are loaded by name when the first file is given.
"""

from collections.abc import Sequence
from importlib import import_module
from os import PathLike
from pathlib import Path

import numpy as np

from imp_ds.errors import UserError
from imp_ds.modalities.vision.framing import Size
from imp_ds.modalities.vision.picture_files import file_bytes

_DECODERS = "imp_ds.modalities.one_file"


def video_of(source, frames: int | None, sampling: str, stride: int, size: Size, ground: Sequence[int]) -> np.ndarray:
    """The frames of a video's file, or of an animated picture's, uint8 [T, H, W, 3]: `frames` over its time, or all that there
    are, when it has fewer or for None.

    sampling, stride: as in `vision.clip_indices`; size: (height, width) that is enough of a picture; ground: colour (R, G, B)
    that transparent frames lie on.

    Raises UserError for what cannot be decoded or is too large.
    """
    return _decoders().video(*_file(source), frames, sampling, stride, size, ground)


def image_of(source) -> np.ndarray:
    """The picture of an image's file at its own size, uint8 [H, W, 3]. Raises UserError for what cannot be decoded."""
    return _decoders().image(*_file(source))


def audio_of(source) -> tuple[np.ndarray, int]:
    """The samples of a recording's file, or of a video's audio, float32 [N] of one channel, and how many there are in a second.
    Raises UserError for what cannot be decoded or is too large."""
    return _decoders().audio(*_file(source))


def _file(source) -> tuple[Path | None, bytes | None]:
    return (Path(source), None) if isinstance(source, (str, PathLike)) else (None, file_bytes(source))


def _decoders():
    try:
        return import_module(_DECODERS)
    except ImportError as error:
        raise UserError(
            "files of videos and audio cannot be decoded here", got=str(error), fix="pip install av soundfile, or give arrays"
        ) from error
