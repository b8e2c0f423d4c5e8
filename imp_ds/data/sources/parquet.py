"""Parquet files with embedded media, or with the names of files beside them.

Parquet is made to be read a row group at a time, but rows are wanted one by one, in the order of a shuffled window. So a row
group is unpacked once, with the columns that are needed, to an Arrow file in the cache, from which any row is read by its place.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from imp_ds.data.files.lru_cache import LruCache
from imp_ds.data.files.storage import File
from imp_ds.data.sources.columns.classes import class_names
from imp_ds.data.sources.columns.embedded import embedded
from imp_ds.data.sources.format import Format, register_format
from imp_ds.data.sources.rows import RowReader, check_columns
from imp_ds.data.sources.splits import Wanted, shards
from imp_ds.data.sources.unpacked import mapped_table, row_of
from imp_ds.errors import UserError
from imp_ds.json_files import parse_json
from imp_ds.modalities.media import BadSample, Media

_MAPPED = 1024  # row groups that are mapped at a time
_PROGRESS_FROM = 64  # files: to open so many takes so long that progress is reported


@register_format
class ParquetFormat(Format):
    """Parquet files."""

    kind = "parquet"

    def find(self, wanted: Wanted) -> None:
        """Raises NoSplit when there is no such split, and Unreachable."""
        shards(wanted, ".parquet")

    def open_split(self, wanted: Wanted) -> RowReader:
        """The reader of a split. Raises UserError and Unreachable."""
        files = shards(wanted, ".parquet")
        names = class_names(wanted, wanted.folder(".parquet"), found=_names_of_feature(wanted, files[0]))
        return ParquetReader(wanted, files, names)


class ParquetReader(RowReader):
    """The rows of Parquet files; a row group is a shard. Args: as RowReader, and `files`."""

    def __init__(self, wanted: Wanted, files: list[File], class_names: list[str] | None):
        self.storage, self.files = wanted.storage, files
        rows_G, file_G, group_G = [], [], []
        for number, file in enumerate(files):
            footer = _footer(self.storage, file)
            check_columns(file.address, footer.columns, wanted.columns)
            rows_G += footer.rows_G
            group_G += range(len(footer.rows_G))
            file_G += [number] * len(footer.rows_G)
            if wanted.progress is not None and len(files) >= _PROGRESS_FROM:
                wanted.progress(f"opening {wanted.name}", number + 1, len(files))
        super().__init__(wanted, rows_G, class_names)
        self._file_G, self._group_G = np.array(file_G, dtype=np.int32), np.array(group_G, dtype=np.int32)
        self._start_G = np.concatenate([[0], np.cumsum(self.shard_rows)])
        first_F = np.searchsorted(self._file_G, np.arange(len(files)))
        self._start_F = self._start_G[first_F]  # the first row of each file
        self._groups = LruCache(_MAPPED)
        self._named = [wanted.named_files(file) for file in files]

    def key(self, row: int) -> str:
        """The file and the row in it."""
        place, inside = self._place(row)
        return f"{self.files[place].name}/{inside}"

    def fields(self, row: int) -> Mapping:
        group = int(np.searchsorted(self._start_G, row, side="right")) - 1
        table = self._groups.get((group, *self.roles), lambda: self._unpacked(group))  # `only` shares what is kept
        if isinstance(table, BadSample):
            raise table.without_frames()
        return row_of(table, row - int(self._start_G[group]))

    def media(self, row: int, column: str, value) -> Media:
        place, inside = self._place(row)
        address = self.files[place].address
        return embedded(value, f"{address}/{inside}/{column}", f"{address}, row {inside + 1}, {column!r}", self._named[place])

    def _place(self, row: int) -> tuple[int, int]:
        """(file, row in it)."""
        place = int(np.searchsorted(self._start_F, row, side="right")) - 1
        return place, row - int(self._start_F[place])

    def _unpacked(self, group: int) -> pa.Table | BadSample:
        """A row group, mapped, or what is wrong with it, for all of its rows. Raises BadSample when it cannot be reached now."""
        file, number, columns = self.files[self._file_G[group]], int(self._group_G[group]), sorted(set(self.columns_read))
        try:
            with self.storage.open(file) as packed:
                write = partial(_unpack, packed, number, columns, int(self.shard_rows[group]))
                file = self.storage.file_cache.open(f"unpacked {file.address} {file.stamp} {number} {columns}", write)
        except _Damaged as error:
            return BadSample("damaged", f"{file.address}, row group {number}: {error}")
        except OSError as error:
            raise BadSample("unreachable", f"{file.address}, row group {number}: {error}") from error
        return mapped_table(file)


class _Damaged(Exception):
    """A row group cannot be read."""


def _unpack(packed, group: int, columns: list[str], rows: int, path: Path) -> None:
    """Write one row group. Raises _Damaged."""
    try:
        table = _table(packed, group, columns)
        if len(table) != rows:
            raise ValueError(f"{len(table)} rows, not {rows}")
        table.validate(full=True)  # texts that are no UTF-8, offsets that lead out
    except Exception as error:  # damaged files make Arrow raise whatever its parsers run into
        raise _Damaged(_line(error)) from error
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)


def _table(packed, group: int, columns: list[str]) -> pa.Table:
    """Threads would not survive a fork, and workers read in parallel anyway."""
    file = pq.ParquetFile(packed)
    names = file.schema_arrow.names
    outer = {column if column in names else column.partition(".")[0] for column in columns}
    there = [name for name in names if name in outer]
    return file.read_row_group(group, columns=there, use_threads=False)


class _Footer(NamedTuple):
    """What a Parquet file says of itself: its outer columns, the rows of each group, and what else was noted."""

    columns: list[str]
    rows_G: list[int]
    notes: dict[bytes, bytes]


def _footer(storage, file: File) -> _Footer:
    """Raises UserError for a damaged one."""
    with storage.open(file) as opened:
        try:
            metadata = pq.read_metadata(opened)
            rows_G = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
            if min(rows_G, default=0) < 0 or sum(rows_G) != metadata.num_rows:
                raise ValueError(f"{metadata.num_rows} rows, in groups of {rows_G[:9]}")
            return _Footer(metadata.schema.to_arrow_schema().names, rows_G, metadata.metadata or {})
        except Exception as error:  # damaged files make Arrow raise whatever its parsers run into
            fix = "write it anew, or take it away"
            raise UserError("a file is not Parquet", got=f"{file.address}: {_line(error)}", fix=fix) from error


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _names_of_feature(wanted: Wanted, file: File) -> list[str] | None:
    """The class names that `datasets` keeps in the metadata of its files."""
    try:
        notes = _footer(wanted.storage, file).notes.get(b"huggingface", b"{}")
        names = parse_json(notes, file.address)["info"]["features"][wanted.source.label]["names"]
    except (KeyError, TypeError, UserError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
