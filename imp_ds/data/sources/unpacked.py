"""Rows unpacked to Arrow files in the cache, from which any of them is read by its place, without a copy in memory."""

import mmap
from typing import BinaryIO

import pyarrow as pa

from imp_ds.modalities.media import BadSample


def mapped_table(file: BinaryIO) -> pa.Table:
    """The table of an Arrow file, mapped; the file is closed."""
    with file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped))).read_all()


def row_of(table: pa.Table, row: int) -> dict:
    """column -> value of a row, as Python has it. Raises BadSample for a value that Python has not."""
    try:
        return {name: table.column(name)[row].as_py() for name in table.schema.names}
    except (pa.ArrowException, ValueError, OverflowError) as error:  # no UTF-8, a time beyond the years
        raise BadSample("wrong column", f"row {row + 1} of its group: {error}") from error
