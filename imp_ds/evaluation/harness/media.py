"""The media of mteb's batches, in all shapes in which they come, as what a processor or a view takes."""

from pathlib import Path

import numpy as np

from imp_ds.data.decoding import decode_windows
from imp_ds.errors import UserError
from imp_ds.modalities.media import BadSample, Media
from imp_ds.modalities.modality import get_modality
from imp_ds.modalities.views import Views
from imp_ds.registry import MODALITIES

KINDS = {kind: name for name in MODALITIES for kind in get_modality(name).item_kinds}  # mteb's name of what an item has: modality
_PLURAL = {"image": "images", "video": "videos"}
_FRAMES = 64  # that are taken of a decoder at most, evenly spread: more than views have


def plain(kind: str) -> str:
    """The processor's name for a kind of items."""
    return _PLURAL.get(kind, kind)


def windows(kind: str, value, views: Views | None) -> list:
    """What is encoded of a medium of a batch: with a view all its windows, else the medium as the processor takes it. Raises
    UserError where it cannot be read."""
    modality = KINDS[kind]
    view = None if views is None else getattr(views, modality)
    medium = _medium(value)
    if view is None or medium is None:
        return [_array(kind, value) if medium is None else medium.data if medium.path is None else str(medium.path)]
    try:
        found = decode_windows({modality: medium}, Views(**{modality: view}))
    except BadSample as error:
        raise UserError(f"the {kind} of a task cannot be read", got=f"{medium.name}: {error}") from None
    return [window[modality] for window in found]


def _medium(value) -> Media | None:
    """A file, or the bytes of one; None for what is decoded already."""
    if isinstance(value, (str, Path)):
        return Media(str(value), path=Path(value))
    if isinstance(value, dict) and value.keys() <= {"path", "bytes"}:
        name = value.get("path") or "medium"
        return Media(name, path=Path(name)) if value.get("bytes") is None else Media(name, data=value["bytes"])
    return None


def _array(kind: str, value):
    """As the processor takes it: decoders of torchcodec as frames, or samples with their rate."""
    if kind == "audio" and hasattr(value, "get_all_samples"):
        samples = value.get_all_samples()
        return {"array": samples.data.mean(0).numpy(), "sampling_rate": samples.sample_rate}
    if kind == "video" and hasattr(value, "get_frames_at"):
        count = len(value)
        places = np.linspace(0, count - 1, min(count, _FRAMES)).round().astype(int)
        return value.get_frames_at(indices=places.tolist()).data.numpy()
    return value
