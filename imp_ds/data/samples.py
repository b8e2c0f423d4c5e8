"""What a reader gives to the decoder, and how both say that a sample cannot be used."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import numpy as np

from imp_ds.data.files.storage import open_regular
from imp_ds.tasks import Source

# Why a sample is left out: what is counted, and what rejected.jsonl says.
REASONS = (
    "missing file", "empty", "unsafe name", "unreachable", "bad JSON", "missing column", "wrong column", "no label",
    "no such class", "unreadable image", "unreadable film", "unreadable sound", "cut off", "damaged", "too large", "no pictures",
    "no sound", "no text",
)  # fmt: skip


class BadSample(Exception):
    """A sample that cannot be used. `reason` is one of REASONS; `detail` says what was met."""

    def __init__(self, reason: str, detail: str = ""):
        assert reason in REASONS, reason
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def without_frames(self) -> "BadSample":
        """The same to be kept as a value: without the frames in which it was raised, since they hold all that they worked on."""
        return BadSample(self.reason, self.detail)

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


class Media(NamedTuple):
    """The bytes of one image, film or sound: a local file or what `read` returns, neither of which is read before `open`, or
    `data`, which a row holds.

    name: distinguishes it from all others of the run, and is what messages call it; its suffix gives the kind.
    """

    name: str
    path: Path | None = None
    read: Callable[[], bytes] | None = None
    data: bytes | None = None

    @property
    def suffix(self) -> str:
        """Lower case, with the dot: ".jpg"."""
        return os.path.splitext(self.name)[1].lower()

    def open(self) -> BinaryIO:
        """A seekable file. Raises BadSample when it is not there, is empty, cannot be reached, or is no file: a fifo, a device, a
        folder."""
        try:
            if self.path is not None:
                file = open_regular(self.path)
            else:
                file = io.BytesIO(self.read() if self.data is None else self.data)
        except FileNotFoundError as error:
            raise BadSample("missing file", self.name) from error
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have; a pipe or a device
            raise BadSample("unreachable", f"{self.name}: {error}") from error
        try:
            begins = file.read(1)
            file.seek(0)
        except OSError as error:
            file.close()
            raise BadSample("unreachable", f"{self.name}: {error}") from error
        if not begins:
            file.close()
            raise BadSample("empty", self.name)
        return file


# A row as a reader gives it, by role: "vision" and "audio": Media, "text": list[str], "label": int.
RawSample = dict


class Reader(Protocol):
    """The rows of one split of one source, in a fixed order of their own, each to be had at once by its number.

    A reader holds nothing that grows with the rows but what it maps from an index on disk; it can be forked and pickled.
    name: the source as messages and counts call it, for example "images[train]".
    shard_rows: rows of each shard, int64 [S], in the order of the rows. What has no shards is cut into runs of rows.
    class_names: in the order of the labels, or None.
    damage: files that end before they should, each in a sentence; the rows before their ends are there.
    """

    name: str
    source: Source
    shard_rows: np.ndarray
    class_names: list[str] | None
    damage: list[str]

    def __len__(self) -> int: ...

    def key(self, row: int) -> str:
        """A name of the row that stays the same, whatever is done with the others."""

    def read(self, row: int) -> RawSample:
        """All roles of the row. Raises BadSample."""
