"""Parquet files with embedded media, or with the names of files beside them.

Parquet is made to be read a row group at a time, but rows are wanted one by one, in the order of a shuffled window. So a row
group is unpacked once, with the columns that are needed, to an Arrow file in the cache, from which any row is read by its place.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from imp_ds.data.recent import Recent
from imp_ds.data.samples import BadSample, Media
from imp_ds.data.sources.classes import class_names
from imp_ds.data.sources.embedded import embedded
from imp_ds.data.sources.rows import RowReader, check_columns
from imp_ds.data.sources.splits import Wanted, shards
from imp_ds.data.sources.unpacked import mapped_table, row_of
from imp_ds.data.storage import File
from imp_ds.errors import UserError
from imp_ds.json_files import parse_json

_MAPPED = 1024  # row groups that are mapped at a time
_TOLD_FROM = 64  # files: to open so many takes so long that progress is told


def find(wanted: Wanted) -> None:
    """Raises NoSplit when there is no such split, and Unreachable."""
    shards(wanted, ".parquet")


def open_split(wanted: Wanted) -> RowReader:
    """The reader of a split. Raises UserError and Unreachable."""
    files = shards(wanted, ".parquet")
    return ParquetReader(wanted, files, class_names(wanted, wanted.folder(".parquet"), found=_names_of_feature(wanted, files[0])))


class ParquetReader(RowReader):
    """The rows of Parquet files; a row group is a shard. Args: as RowReader, and `files`."""

    def __init__(self, wanted: Wanted, files: list[File], class_names: list[str] | None):
        self.storage, self.files = wanted.storage, files
        rows_G, file_G, group_G = [], [], []
        for number, file in enumerate(files):
            metadata = _metadata(self.storage, file)
            check_columns(file.address, metadata.schema.to_arrow_schema().names, wanted.columns)
            rows_G += [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            group_G += range(metadata.num_row_groups)
            file_G += [number] * metadata.num_row_groups
            if wanted.progress is not None and len(files) >= _TOLD_FROM:
                wanted.progress(f"opening {wanted.name}", number + 1, len(files))
        super().__init__(wanted, rows_G, class_names)
        self._file_G, self._group_G = np.array(file_G, dtype=np.int32), np.array(group_G, dtype=np.int32)
        self._start_G = np.concatenate([[0], np.cumsum(self.shard_rows)])
        first_F = np.searchsorted(self._file_G, np.arange(len(files)))
        self._start_F = self._start_G[first_F]  # the first row of each file
        self._groups = Recent(_MAPPED)
        self._named = [wanted.named_files(file) for file in files]

    def key(self, row: int) -> str:
        """The file and the row in it."""
        place, inside = self._place(row)
        return f"{self.files[place].name}/{inside}"

    def fields(self, row: int) -> Mapping:
        group = int(np.searchsorted(self._start_G, row, side="right")) - 1
        table = self._groups.get((group, *self.roles), lambda: self._unpacked(group))  # `only` shares what is kept
        return row_of(table, row - int(self._start_G[group]))

    def media(self, row: int, column: str, value) -> Media:
        place, inside = self._place(row)
        address = self.files[place].address
        return embedded(value, f"{address}/{inside}/{column}", f"{address}, row {inside + 1}, {column!r}", self._named[place])

    def _place(self, row: int) -> tuple[int, int]:
        """(file, row in it)."""
        place = int(np.searchsorted(self._start_F, row, side="right")) - 1
        return place, row - int(self._start_F[place])

    def _unpacked(self, group: int) -> pa.Table:
        """A row group, mapped. Raises BadSample when it cannot be read."""
        file, number, columns = self.files[self._file_G[group]], int(self._group_G[group]), sorted(set(self.columns.values()))
        try:
            with self.storage.open(file) as packed:
                write = partial(_unpack, packed, number, columns)
                kept = self.storage.kept.open(f"unpacked {file.address} {file.stamp} {number} {columns}", write)
        except (pa.ArrowException, OSError) as error:
            raise BadSample("unreachable", f"{file.address}, row group {number}: {error}") from error
        return mapped_table(kept)


def _unpack(packed, group: int, columns: list[str], path: Path) -> None:
    """Write one row group. Threads would not survive a fork, and workers read in parallel anyway."""
    file = pq.ParquetFile(packed)
    names = file.schema_arrow.names
    outer = {column if column in names else column.partition(".")[0] for column in columns}
    there = [name for name in names if name in outer]
    table = file.read_row_group(group, columns=there, use_threads=False)
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)


def _metadata(storage, file: File) -> pq.FileMetaData:
    try:
        with storage.open(file) as opened:
            return pq.read_metadata(opened)
    except pa.ArrowException as error:
        raise UserError("a file is not Parquet", got=f"{file.address}: {error}", fix="write it anew, or take it away") from error


def _names_of_feature(wanted: Wanted, file: File) -> list[str] | None:
    """The class names that `datasets` keeps in the metadata of its files."""
    stored = _metadata(wanted.storage, file).metadata or {}
    try:
        names = parse_json(stored.get(b"huggingface", b"{}"), file.address)["info"]["features"][wanted.source.label]["names"]
    except (KeyError, TypeError, UserError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
