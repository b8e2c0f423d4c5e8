"""Indexes on disk: long columns of numbers, written in memory that does not grow and mapped when they are read.

The file is a safetensors file of one-dimensional arrays, so that any tool can look into it.
"""

import json
import mmap
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

_NAMES = {"int64": "I64", "int32": "I32", "uint16": "U16", "uint8": "U8"}
_DTYPES = {name: np.dtype(dtype) for dtype, name in _NAMES.items()}
_MOST_HEADER = 1 << 24


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
        header, at = {"__metadata__": facts}, 0
        for name, dtype in self.dtypes.items():
            size = self._files[name].tell()
            header[name] = {"dtype": _NAMES[dtype], "shape": [size // np.dtype(dtype).itemsize], "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(self.path, "wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name in self.dtypes:
                self._files[name].seek(0)
                shutil.copyfileobj(self._files[name], out, 1 << 20)
                self._files[name].close()


class Index:
    """The columns of such a file as attributes of `columns`, mapped and read-only, and its `facts`.

    Args:
        file: closed when it is mapped.

    Raises ValueError for a file that is none.
    """

    def __init__(self, file: BinaryIO):
        with file:
            try:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError:
                raise ValueError("an empty file is no index") from None
        length = int.from_bytes(mapped[:8], "little")
        if not 0 < length <= min(_MOST_HEADER, len(mapped) - 8):
            raise ValueError("not an index: its header is cut")
        try:
            header = json.loads(mapped[8 : 8 + length])
            self.facts: dict[str, str] = header.pop("__metadata__")
            self.columns = {name: _column(mapped, 8 + length, entry) for name, entry in header.items()}
        except (AttributeError, KeyError, TypeError, RecursionError, ValueError) as error:
            raise ValueError(f"not an index: {error!r}") from None


def _column(mapped: mmap.mmap, start: int, entry: dict) -> np.ndarray:
    dtype, (count,), begin = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"][0]
    if not (isinstance(begin, int) and isinstance(count, int) and begin >= 0 and count >= 0):
        raise ValueError("its offsets are no numbers")
    if not count:
        return np.empty(0, dtype)
    return np.frombuffer(mapped, dtype, count, start + begin)  # raises ValueError past the end
