"""One sample as a reader gives it: the bytes of media files, and how reading and decoding say that it cannot be used."""

import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from imp_ds.errors import UserError


class BadSample(Exception):
    """A sample that cannot be used.

    Args:
        reason: a few words that are the same for all samples with this fault: they are counted by it.
        detail: what was found in this sample.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def without_frames(self) -> "BadSample":
        """The same to be kept as a value: without the frames in which it was raised, since they hold all that they worked on."""
        return BadSample(self.reason, self.detail)

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


class Media(NamedTuple):
    """The bytes of one image, video or audio: a local file or what `read` returns, neither of which is read before `open`, or
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


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """A file of this machine, for reading. Raises UserError for a pipe or a device, which might never end or never begin, and
    OSError."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UserError(f"{path} is not a file", got="a pipe, a socket or a device", fix="write what it gives to a file")
    return file


def first_facts(readers: list[Callable[[Media], dict]], media: Media) -> dict[str, float]:
    """What the first of the readers that gets along with the file says of it, without what is 0 or unknown; nothing where none
    does."""
    for read in readers:
        try:
            return {name: float(value) for name, value in read(media).items() if value}
        except Exception:  # whatever a library runs into with a damaged header: decoding says what is wrong with it
            continue
    return {}


def shown(value) -> str:
    """A value in a message: not more than its beginning."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
