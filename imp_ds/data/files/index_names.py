"""Names of files in an index: the columns `names`, all of them one after the other, and `name_end`, where each ends there."""

import os
from collections.abc import Mapping, Sequence

import numpy as np

from imp_ds.data.files.index import Column, IndexWriter

COLUMNS = {"name_end": "int64", "names": "uint8"}  # for IndexWriter


def append_names(writer: IndexWriter, names: Sequence[str], end: int = 0) -> int:
    """Add names behind those that end at `end`; returns where these end."""
    written = [os.fsencode(name) for name in names]
    writer.append("names", np.frombuffer(b"".join(written), np.uint8))
    writer.append("name_end", end + np.cumsum([len(name) for name in written], dtype=np.int64))
    return end + sum(map(len, written))


def name_at(columns: Mapping[str, Column], row: int) -> str:
    """The name of that number, from 0."""
    begin = int(columns["name_end"][row - 1]) if row else 0
    return os.fsdecode(columns["names"][begin : int(columns["name_end"][row])].tobytes())
