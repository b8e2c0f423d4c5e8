"""What frozen towers make of media, kept on disk: computed once before training, and read by the loader in place of the media.

A file is named by the tower, by what preprocesses its media, and by the bytes of the medium: where any of these is another, so is
the name. It holds a checksum; a damaged file is as one that is not there.

Shapes: N parts of a medium, L tokens, S width of the tower.
"""

import hashlib
import json
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from imp_ds.data.files.file_cache import FileCache
from imp_ds.modalities.media import Media

_FORMAT = 1


class FeatureCache:
    """The features of media of some kinds.

    Args:
        files: where they are kept.
        towers: kind -> what its features follow from beside the medium and the view: the tower's weights, its preprocessing.
    """

    def __init__(self, files: FileCache, towers: dict[str, object]):
        self.files = files
        self._towers = {kind: _digest(tower) for kind, tower in towers.items()}

    @property
    def kinds(self) -> list[str]:
        return list(self._towers)

    def key(self, kind: str, media: Media, view) -> str:
        """The name of a medium's features, as a `MessagesView` sees it. Raises BadSample where it cannot be opened."""
        with media.open() as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        seen = {"video": view.frames, "audio": view.sampling_rate}.get(kind)
        return f"features {_FORMAT} {kind} {self._towers[kind]} {seen} {content}"

    def find(self, key: str) -> torch.Tensor | None:
        """The features [N, L, S] in the tower's own type; None where they are not there, or damaged."""
        file = self.files.find(key)
        if file is None:
            return None
        with file:
            content = file.read()
        try:
            found = load(content)
            features_NLS = found["features"]
            is_whole = int(found["checksum"]) == _checksum(features_NLS)
        except (SafetensorError, KeyError, ValueError, RuntimeError):
            is_whole = False
        if not is_whole:
            self.files.remove(key)
            return None
        return features_NLS

    def read(self, kind: str, media: Media, view) -> np.ndarray | None:
        """The features of a medium, float32 [N, L, S], exactly; None where they are not there. Raises BadSample as `key`."""
        features_NLS = self.find(self.key(kind, media, view))
        return None if features_NLS is None else features_NLS.float().numpy()

    def write(self, key: str, features_NLS: torch.Tensor) -> None:
        """Keep the features of a medium. Raises UserError where the folder cannot be written."""
        self.files.open(key, partial(_write, features_NLS.contiguous())).close()


def _digest(tower) -> str:
    return hashlib.sha256(json.dumps(tower, sort_keys=True, default=str).encode()).hexdigest()


def _write(features_NLS: torch.Tensor, path: Path) -> None:
    checksum = torch.tensor(_checksum(features_NLS), dtype=torch.int64)
    path.write_bytes(save({"features": features_NLS, "checksum": checksum}))


def _checksum(tensor: torch.Tensor) -> int:
    return zlib.crc32(tensor.contiguous().view(-1).view(torch.uint8).numpy())
