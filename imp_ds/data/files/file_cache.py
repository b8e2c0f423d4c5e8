"""A file cache: one folder of files that can be made again, up to a bound: copies of remote files, indexes, unpacked shards.

Several processes share the folder, those of other runs too. A file gets its name only when it is complete. What was not opened
for longest goes first, but for what a run that is alive has pinned; a file that is open stays readable after it went.
"""

import errno
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from filelock import FileLock, Timeout

from imp_ds.errors import UserError
from imp_ds.written_files import staged_path, write_file

_SLACK = 16  # room is made down to 15 / 16 of the bound, and looked after again when 1 / 64 of the bound was written
_PINS = "pins"  # a folder of lists of names, each with a lock that the process holds which pinned them
_ABANDONED_S = 3600.0  # an unfinished file that nobody wrote to for so long is of a process that died


class FileCache:
    """One folder of such files; the least recently used go first.

    Args:
        folder: made when it is not there.
        most_bytes: the bound on all files together.
        setting: what sets it, for messages.
    """

    def __init__(self, folder: Path, most_bytes: int, setting: str = "data.cache_gb"):
        self.folder, self.most_bytes, self.setting = folder, most_bytes, setting
        self._unseen = most_bytes  # bytes written since the folder was last looked at; at first all may be taken
        self._pins: list[FileLock] = []

    def __getstate__(self) -> dict:
        """What another process gets of it: all but what this one has pinned, which stays pinned here."""
        return {**self.__dict__, "_pins": []}

    def open(self, key: str, make: Callable[[Path], None], of_others: bool = False) -> BinaryIO:
        """The file of `key`, for reading; `make(path)` writes it when it is not there, in one process while others wait.

        of_others: `make` asks for other cached files, for which this is not so. Without, it may ask for none.

        Raises what `make` raises, and UserError when the folder cannot be written, is full, or the file is larger than the bound.
        """
        path = self._path(key)
        file = self._find(path)
        if file is not None:
            return file
        with _writable(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.parent / ("outer.lock" if of_others else "lock"))
            lock.acquire()
        try:
            return self._find(path) or self._make(path, make)  # another process may have made it meanwhile
        finally:
            lock.release()

    def find(self, key: str) -> BinaryIO | None:
        """The file of `key`, if it is there now. Raises UserError as `open`."""
        return self._find(self._path(key))

    def has(self, key: str) -> bool:
        """Whether the file of `key` is there now."""
        return self._path(key).exists()

    def remove(self, key: str) -> None:
        """Forget the file of `key`: it is made anew when it is wanted."""
        self._path(key).unlink(missing_ok=True)

    def pin(self, keys: Iterable[str]) -> None:
        """Have no process, whatever its bound, remove the files of these keys while this process holds this object. Raises
        UserError as `open`."""
        path = self.folder / _PINS / uuid4().hex
        with _writable(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(f"{path}.lock")
            lock.acquire()
            write_file(path, "\n".join(self._path(key).name for key in keys))
        self._pins.append(lock)

    def _pinned(self) -> set[str]:
        """The names of files that are pinned; lists of processes that are no more are removed."""
        names: set[str] = set()
        for path in (self.folder / _PINS).glob("*.lock"):
            lock, pins = FileLock(path), path.with_suffix("")
            try:
                with lock.acquire(timeout=0):
                    for file in (pins, staged_path(pins)):  # the second is left by a process that was killed while it wrote
                        file.unlink(missing_ok=True)
                    path.unlink(missing_ok=True)
            except Timeout:
                with suppress(FileNotFoundError):
                    names.update(pins.read_text().split("\n"))
        return names

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
        return self.folder / name[:2] / name

    def _find(self, path: Path) -> BinaryIO | None:
        with _writable(self.folder):
            try:
                file = open(path, "rb")
            except FileNotFoundError:
                return None
        with suppress(PermissionError):  # who may only read has no say in what goes
            os.utime(file.fileno())
        return file

    def _make(self, path: Path, make: Callable[[Path], None]) -> BinaryIO:
        with _writable(self.folder):
            number, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
            os.close(number)
        try:
            with _writable(self.folder, errno.ENOSPC, errno.EDQUOT):
                make(Path(part))
            file = open(part, "rb")
            self._make_room(part, os.fstat(file.fileno()).st_size)
            os.replace(part, path)
            return file
        finally:
            Path(part).unlink(missing_ok=True)

    def _make_room(self, part: str, size: int) -> None:
        """Remove what was not used for longest, so that `part`, of `size` bytes, keeps to the bound."""
        if size > self.most_bytes:
            raise UserError(
                "a file is larger than the cache that it belongs to", got=f"{size / 2**30:.3g} GiB",
                allowed=f"{self.setting} = {self.most_bytes / 2**30:.3g} GiB", fix=f"raise {self.setting}",
            )  # fmt: skip
        self._unseen += size
        if self._unseen <= self.most_bytes // (4 * _SLACK):
            return
        with FileLock(self.folder / "lock"):
            files, pinned = sorted(self._files()), self._pinned()
            total, newest = sum(file_size for _, file_size, _ in files), time.time() - _ABANDONED_S
            for used, file_size, path in files:
                if total <= self.most_bytes - self.most_bytes // _SLACK:
                    break
                if path != part and os.path.basename(path) not in pinned and not (path.endswith(".part") and used > newest):
                    Path(path).unlink(missing_ok=True)
                    total -= file_size
        self._unseen = 0

    def _files(self) -> Iterator[tuple[float, int, str]]:
        """(time of last use, bytes, path) of every file, finished or not."""
        for folder in self.folder.iterdir():
            for entry in os.scandir(folder) if folder.is_dir() and folder.name != _PINS else ():
                if not entry.name.endswith("lock"):
                    try:
                        stat = entry.stat()
                    except FileNotFoundError:
                        continue  # just removed or renamed by another process
                    yield stat.st_mtime, stat.st_size, entry.path


@contextmanager
def _writable(folder: Path, *numbers: int) -> Iterator[None]:
    """Turn an OSError, or one of certain numbers, into what the user can do about the folder."""
    try:
        yield
    except OSError as error:
        if numbers and error.errno not in numbers:
            raise
        fix = "set data.cache_dir to a folder with room"
        raise UserError("the cache of data cannot be written", got=f"{folder}: {error.strerror}", fix=fix) from error
