"""Where files lie: on this machine, or at an address of any file system that fsspec knows (s3://, gs://, hf://, memory://).

A local file is opened where it is. A remote one is copied in full, once, to a cache of bounded size; what fails is tried again
after a while. Addresses come from the recipe: those inside data are never followed.
"""

import errno
import glob
import os
import random
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import fsspec

from imp_ds.data.files.file_cache import FileCache
from imp_ds.errors import UserError
from imp_ds.modalities.media import open_regular

DEFAULT_ROOT = "data/digits"  # of a run that sets none, and so need not have one
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0  # before another attempt; each wait is twice the last
# what the file systems call that which changes with the content, the surest first
_VERSIONS = ("ETag", "etag", "md5Hash", "md5", "checksum", "sha256", "blob_id", "generation", "mtime", "LastModified",
             "last_modified", "updated", "modified", "created")  # fmt: skip
_BRACES = re.compile(r"\{([^{}]*)\}")


class Unreachable(OSError):
    """A remote file could not be read, and not for want of trying."""


class File(NamedTuple):
    """A file that is there. `size` is -1 where the server does not say; `stamp` is another one when the content changes, as far
    as the file system knows."""

    address: str
    size: int
    stamp: str

    @property
    def name(self) -> str:
        """Without the folders."""
        return self.address.rpartition("/")[2]


def cache_folder(cache_dir: str | None) -> Path:
    """The folder of all caches: `data.cache_dir`, or ~/.cache/imp_ds."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "imp_ds" if cache_dir is None else Path(cache_dir)
    return base.expanduser().absolute()


class Storage:
    """The files of one run.

    Args:
        cache_dir: None for ~/.cache/imp_ds.
        cache_gb: bound on the copies of remote files, the indexes and the unpacked shards, in GiB.
        retries: attempts to read a remote file after the first has failed.
    """

    def __init__(self, cache_dir: str | None = None, cache_gb: float = 50.0, retries: int = 5):
        self.file_cache = FileCache(cache_folder(cache_dir) / "files", int(cache_gb * 2**30))
        self.retries = retries

    def files(self, pattern: str) -> list[File]:
        """The files that a pattern names, sorted by address: with *, ?, [] and **, and {00..12} or {a,b} as a shell has them.
        Raises Unreachable."""
        return sorted(file for plain in _without_braces(pattern) for file in self._matches(plain))

    def file(self, address: str) -> File:
        """One file. Raises FileNotFoundError and Unreachable."""
        return self._tried(address, lambda system, path: _file(system, path, system.info(path)))

    def names(self, folder: str, folders: bool = False) -> list[str] | None:
        """Names of the files in a folder, or of its folders, sorted; None where there is no such folder. Raises Unreachable."""
        path = local_path(folder)
        if path is not None:
            try:
                with os.scandir(path) as entries:
                    return sorted(entry.name for entry in entries if _is(entry, folders))
            except (FileNotFoundError, NotADirectoryError):
                return None
        entries = self._tried(folder, lambda system, path: system.ls(path, detail=True) if system.isdir(path) else None)
        if entries is None:
            return None
        kind = "directory" if folders else "file"
        return sorted(entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == kind)

    def open(self, file: File) -> BinaryIO:
        """The file itself, or a copy of a remote one. Raises FileNotFoundError and Unreachable, and
        UserError for a pipe or a device."""
        path = local_path(file.address)
        if path is not None:
            return open_regular(path)
        return self.file_cache.open(f"copy {file.address} {file.stamp}", partial(self._copy, file))

    def read(self, address: str, stamp: str) -> bytes:
        """All bytes of a file that a row names. `stamp` is that of the file the row stands in. Raises as `open`."""
        with self.open(File(address, -1, stamp)) as file:
            return file.read()

    def _copy(self, file: File, to: Path) -> None:
        def attempt(system, path):
            system.get_file(path, str(to))
            size = to.stat().st_size
            if file.size not in (-1, size):
                raise Unreachable(f"{size} bytes came instead of {file.size}")

        self._tried(file.address, attempt)

    def _matches(self, pattern: str) -> list[File]:
        if not _has_magic(pattern):
            try:
                return [self.file(pattern)]
            except (FileNotFoundError, NotADirectoryError):
                return []

        def attempt(system, path):
            found = system.glob(path, detail=True)
            return [_file(system, name, info) for name, info in found.items() if info["type"] == "file"]

        return self._tried(pattern, attempt)

    def _tried(self, address: str, attempt: Callable):
        """`attempt(file system, path on it)`, again after a wait when it fails for a reason that may pass."""
        if local_path(address) is not None:
            return attempt(*_system(address))
        for number in range(self.retries + 1):
            try:
                return attempt(*_system(address))
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                raise
            except (PermissionError, NotImplementedError) as error:
                raise Unreachable(f"{address}: {error}") from error
            except Exception as error:  # each file system has errors of its own
                if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                    raise  # it is the cache that is full
                if number == self.retries:
                    raise Unreachable(f"{address}: {error!r}, {number + 1} times") from error
            # ranks that failed together do not try again together
            time.sleep(min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**number) * random.uniform(0.5, 1.0))


def place(root: str | Path, path: str) -> str:
    """The address of `path`: below `root` unless it is absolute or an address itself. A local one is an absolute path.

    Raises UserError for a protocol that is not a file system's, and for one whose package is not installed.
    """
    address = path if _protocol(path) or os.path.isabs(path) else f"{os.fspath(root)}/{path}"
    protocol = _protocol(address)
    if protocol is None:
        return os.path.abspath(os.path.expanduser(address)).rstrip("/")
    try:
        system = fsspec.get_filesystem_class(protocol)
    except ValueError:
        raise UserError(
            "an address has an unknown protocol", got=address,
            allowed="a path, or an address of a file system that fsspec knows (s3://, gs://, hf://, https://); no command is run",
        ) from None  # fmt: skip
    except ImportError as error:
        raise UserError(f"{protocol}:// cannot be read here", got=str(error), fix="install that package") from error
    local = "file" in (system.protocol if isinstance(system.protocol, (tuple, list)) else (system.protocol,))
    return os.path.abspath(system._strip_protocol(address)) if local else address.rstrip("/")


def local_path(address: str) -> Path | None:
    """The path of a local file, None for a remote one. `address` is one that `place` gave, or is below it."""
    return None if _protocol(address) else Path(address)


def below(folder: str, pattern: str) -> str:
    """A pattern of files in a folder whose own name is no pattern."""
    return place("/", pattern) if os.path.isabs(pattern) or _protocol(pattern) else f"{glob.escape(folder)}/{pattern}"


def is_pattern(path: str) -> bool:
    """Whether it names files by *, ?, [] or {}."""
    return _has_magic(path) or bool(_BRACES.search(path))


def _has_magic(path: str) -> bool:
    return glob.has_magic(path.replace("?", "") if path.startswith("http") else path)  # there it begins the query


def _protocol(address: str) -> str | None:
    before, mark, _ = address.partition("://")
    if mark:
        return before
    return "pipe" if address.startswith("pipe:") else None  # how the WebDataset library runs commands


def _system(address: str):
    """(file system, path on it); fsspec keeps one file system for each process, so that a fork has its own."""
    return fsspec.core.url_to_fs(address)


def _file(system, path: str, info: dict) -> File:
    address = path if local_path(path) and "file" in system.protocol else system.unstrip_protocol(path)
    version = next((info[name] for name in _VERSIONS if info.get(name) is not None), "")
    size = info.get("size")  # some servers do not say
    return File(address, -1 if size is None else int(size), f"{size} {version}")


def _is(entry: os.DirEntry, folder: bool) -> bool:
    """Whether an entry is a folder, or a file; a link that leads to itself is neither."""
    try:
        return entry.is_dir() if folder else entry.is_file()
    except OSError:
        return False


def _without_braces(pattern: str) -> list[str]:
    """Every pattern that {00..12} and {a,b} stand for; other braces stay."""
    for found in _BRACES.finditer(pattern):
        if choices := _choices(found[1]):
            before, after = pattern[: found.start()], pattern[found.end() :]
            return [plain for choice in choices for plain in _without_braces(before + choice + after)]
    return [pattern]


def _choices(inside: str) -> list[str]:
    span = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if span:
        return [str(number).zfill(len(span[1])) for number in range(int(span[1]), int(span[2]) + 1)]
    return inside.split(",") if "," in inside else []
