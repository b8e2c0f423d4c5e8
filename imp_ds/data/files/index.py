"""Indexes on disk: long columns of numbers, written and read in memory that does not grow.

The file is a safetensors file of one-dimensional arrays, so that any tool can look into it. Its metadata hold a checksum of all
the rest: a flipped bit would give other samples in silence.
"""

import json
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from imp_ds.data.files.file_cache import FileCache
from imp_ds.errors import UserError

_NAMES = {"int64": "I64", "int32": "I32", "uint16": "U16", "uint8": "U8"}
_DTYPES = {name: np.dtype(dtype) for dtype, name in _NAMES.items()}
_MOST_HEADER = 1 << 24
_SUM, _NO_SUM = "crc32", "00000000"


class IndexWriter:
    """Columns that grow on disk until `close` puts them into one file.

    Args:
        path: the file.
        **columns: name of each column and its type: "int64", "int32", "uint16" or "uint8".
    """

    def __init__(self, path: Path, **columns: str):
        self.path = path
        # the widest first, so that each begins at a multiple of its width
        self.dtypes = dict(sorted(columns.items(), key=lambda pair: -np.dtype(pair[1]).itemsize))
        self._files = {name: tempfile.TemporaryFile(dir=path.parent, buffering=1 << 16) for name in columns}

    def append(self, name: str, values) -> None:
        """Add values at the end of a column."""
        self._files[name].write(np.asarray(values, dtype=self.dtypes[name]).tobytes())

    def close(self, **facts: str) -> None:
        """Write the columns, and what else is to be known."""
        header, at = {"__metadata__": {_SUM: _NO_SUM, **facts}}, 0
        for name, dtype in self.dtypes.items():
            size = self._files[name].tell()
            header[name] = {"dtype": _NAMES[dtype], "shape": [size // np.dtype(dtype).itemsize], "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(self.path, "wb+") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name in self.dtypes:
                self._files[name].seek(0)
                shutil.copyfileobj(self._files[name], out, 1 << 20)
                self._files[name].close()
            out.flush()
            out.seek(8 + text.index(_NO_SUM.encode()))
            out.write(f"{_sum(out, len(text)):08x}".encode())


def _sum(file: BinaryIO, header: int) -> int:
    """CRC-32 of an index with a header of that length, whose own position in it counts as zeros."""
    text = os.pread(file.fileno(), 8 + header, 0)
    position = text.find(f'"{_SUM}": "'.encode()) + len(_SUM) + 5
    found, at = zlib.crc32(text[:position] + _NO_SUM.encode() + text[position + len(_NO_SUM) :]), 8 + header
    while block := os.pread(file.fileno(), 1 << 20, at):
        found, at = zlib.crc32(block, found), at + len(block)
    return found


def cached_index(cache: FileCache, key: str, make: Callable[[Path], None], of_others: bool = False) -> "Index":
    """The index of `key` in a cache; one that is damaged is made anew. Arguments and errors as of `FileCache.open`."""
    try:
        return Index(cache.open(key, make, of_others))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        print(f"an index in {cache.folder} is damaged ({error}): it is made anew", file=sys.stderr, flush=True)
        cache.remove(key)
        return Index(cache.open(key, make, of_others))


class Column:
    """One array of an index, of which no more is read than is asked for: `column[n]` and `column[m:n]`.

    Read rather than mapped: around each byte that is touched the kernel would map a part of the file, which counts as memory
    of the process, and with a few thousand random samples that is all of a large index.
    """

    def __init__(self, file: BinaryIO, dtype: np.dtype, count: int, start: int):
        self._file, self._dtype, self._count, self._start = file, dtype, count, start

    def __len__(self) -> int:
        return self._count

    @property
    def bytes(self) -> int:
        return self._count * self._dtype.itemsize

    def held(self) -> "Column":
        """The same, in memory."""
        return _Held(self.raw(0, self._count), self._dtype)

    def raw(self, begin: int, count: int) -> bytes:
        """The bytes of `count` values, little-endian."""
        size = self._dtype.itemsize
        data = os.pread(self._file.fileno(), count * size, self._start + begin * size)
        if len(data) < count * size:
            raise OSError(f"an index became shorter while it was read: {self._file.name}")
        return data

    def __getitem__(self, position: int | slice) -> np.ndarray | np.generic:
        if isinstance(position, slice):
            begin, end, _ = position.indices(self._count)
            return np.frombuffer(self.raw(begin, max(0, end - begin)), self._dtype)
        if not 0 <= position < self._count:
            raise IndexError(position)
        return np.frombuffer(self.raw(int(position), 1), self._dtype)[0]


class _Held(Column):
    def __init__(self, data: bytes, dtype: np.dtype):
        self._data, self._dtype, self._count = data, dtype, len(data) // dtype.itemsize

    def raw(self, begin: int, count: int) -> bytes:
        size = self._dtype.itemsize
        return self._data[begin * size : (begin + count) * size]


class Index:
    """The columns of such a file by name, in `columns`, and its `facts`.

    Args:
        file: kept open.

    Raises ValueError for a file that is none.
    """

    def __init__(self, file: BinaryIO):
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(os.pread(file.fileno(), 8, 0), "little")
        if not 0 < length <= min(_MOST_HEADER, size - 8):
            raise ValueError("not an index: its header is cut")
        try:
            header = json.loads(os.pread(file.fileno(), length, 8))
            self.facts: dict[str, str] = header.pop("__metadata__")
            if self.facts.pop(_SUM) != f"{_sum(file, length):08x}":
                raise ValueError("its checksum is another one")
            self.columns = {name: _column(file, 8 + length, size, entry) for name, entry in header.items()}
        except (AttributeError, KeyError, TypeError, RecursionError, ValueError) as error:
            raise ValueError(f"not an index: {error!r}") from None


def _column(file: BinaryIO, start: int, end: int, entry: dict) -> Column:
    dtype, (count,), begin = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"][0]
    if not (isinstance(begin, int) and isinstance(count, int) and begin >= 0 and count >= 0):
        raise ValueError("its offsets are no numbers")
    if start + begin + count * dtype.itemsize > end:
        raise ValueError("its arrays are cut")
    return Column(file, dtype, count, start + begin)
