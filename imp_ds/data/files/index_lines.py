"""Where each line of a text file, or each record of a CSV file, begins: an index, so that one is read without the others."""

import csv
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from imp_ds.data.files.index import IndexWriter, cached_index
from imp_ds.data.files.storage import File, Storage
from imp_ds.data.files.text_encoding import announced, check_utf8, write_utf8
from imp_ds.errors import UserError
from imp_ds.modalities.media import BadSample

_BLOCK = 1 << 20  # bytes looked at together
_LONG = 1 << 26  # bytes that take so long that progress is reported
_MOST_BYTES = 1 << 24  # of one line: a longer one is none
csv.field_size_limit(_MOST_BYTES)


class Lines:
    """The lines of a file that are not blank, or the records of a CSV file, each to be had by its number, from 0.

    Args:
        storage: where the index is kept.
        file: the text file.
        kind: "lines", or "records", which may hold quoted line ends.
        progress: called with how many bytes are indexed, when they must be.
        delimiter: between the fields of a record.

    Raises UserError for a CSV file that cannot be cut into records and a file in another encoding, FileNotFoundError and
    Unreachable.
    """

    def __init__(
        self, storage: Storage, file: File, kind: Literal["lines", "records"], progress: Callable | None = None,
        delimiter: str = ",",
    ):  # fmt: skip
        self.storage, self.file, self.kind, self.delimiter = storage, file, kind, delimiter
        self._open(progress)

    def __len__(self) -> int:
        return len(self._begin) - 1

    def __getstate__(self) -> dict:
        return {name: getattr(self, name) for name in ("storage", "file", "kind", "delimiter")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open(None)

    def read(self, number: int) -> bytes:
        """One of them, with the white space after it. Raises BadSample when it is too long or no longer there."""
        begin, end = int(self._begin[number]), int(self._begin[number + 1])
        if end - begin > _MOST_BYTES:
            raise BadSample("too large", f"{self.file.address}: a line of {end - begin} bytes")
        data = os.pread(self._text.fileno(), end - begin, begin)
        if len(data) < end - begin:
            raise BadSample("unreachable", f"{self.file.address} became shorter while it was read")
        return data

    def _open(self, progress: Callable | None) -> None:
        self._text = self._utf8()
        make = partial(_write_index, self._text, self.kind, self.file, self.delimiter, progress)
        key = f"{self.kind} 3 {self.delimiter} {self.file.address} {self.file.stamp}"
        index = cached_index(self.storage.file_cache, key, make)
        self._begin = index.columns["begin"]


    def _utf8(self) -> BinaryIO:
        """The file, or a copy in UTF-8 of one that begins with the mark of another encoding."""
        text, address = self.storage.open(self.file), self.file.address
        encoding = announced(text.read(4))
        if encoding is None:
            return text
        write = partial(write_utf8, text, encoding, address)
        with text:
            return self.storage.file_cache.open(f"as UTF-8 {address} {self.file.stamp}", write)


def _write_index(text: BinaryIO, kind: str, file: File, delimiter: str, progress: Callable | None, path: Path) -> None:
    """Write the column `begin`, int64: where each line begins, and the end of the file."""
    size = os.fstat(text.fileno()).st_size
    check_utf8(text, file.address)
    writer = IndexWriter(path, begin="int64")
    progress = progress if size >= _LONG else None
    for begins, done in _lines(text) if kind == "lines" else _records(text, file, delimiter):
        writer.append("begin", begins)
        if progress is not None and done < size:
            progress(f"indexing {file.name}", done, size)
    writer.append("begin", [size])
    writer.close()
    if progress is not None:
        progress(f"indexing {file.name}", size, size)


def _lines(text: BinaryIO) -> Iterator[tuple[np.ndarray, int]]:
    """(beginnings of lines that are not blank, bytes looked at), block by block."""
    text.seek(0)
    begin, at = 0, 0  # of the line that the block continues
    blank = True  # what is known of it
    while block := text.read(_BLOCK):
        bytes_N = np.frombuffer(block, np.uint8)
        ends = np.flatnonzero(bytes_N == 10) + 1
        starts = np.concatenate([[0], ends])
        pieces = starts[starts < len(block)]
        filled = np.logical_or.reduceat(bytes_N > 32, pieces)
        if len(pieces) < len(starts):
            filled = np.append(filled, False)  # the block ends with a line
        filled[0] |= not blank
        full = np.concatenate([[begin], at + ends])
        yield full[:-1][filled[:-1]], at + len(block)
        begin, blank, at = int(full[-1]), not filled[-1], at + len(block)
    if not blank:
        yield np.array([begin]), at


def _records(text: BinaryIO, file: File, delimiter: str) -> Iterator[tuple[np.ndarray, int]]:
    """As `_lines`, of the records of a CSV file, the header among them."""
    text.seek(0)
    at, begins = 0, []

    def lines():
        nonlocal at
        for line in text:
            at += len(line)
            yield line.decode("utf-8", "replace")

    begin, first, records = 0, 1, csv.reader(lines(), delimiter=delimiter, strict=True)
    try:
        for record in records:
            if record:
                begins.append(begin)
            begin, first = at, records.line_num + 1
            if len(begins) == 1 << 16:
                yield np.array(begins), at
                begins.clear()
    except csv.Error as error:
        lines_of = f"line {first}" if first >= records.line_num else f"the record of lines {first} to {records.line_num}"
        raise UserError(
            f"{file.address} is not CSV", got=f"{lines_of}: {error}",
            fix='close the quotes there; a quote inside a quoted field is written twice: ""',
        ) from error  # fmt: skip
    yield np.array(begins, dtype=np.int64), at
