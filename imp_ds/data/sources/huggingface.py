"""Data sets of Hugging Face: by name, by path, or as a folder that `save_to_disk` wrote.

Map-style ones are Arrow files that `datasets` maps, and any row is read by its place. With `source.streaming` nothing is
downloaded in advance: files that are Parquet or tar shards are read by our own readers where they lie, and anything else a shard
at a time, which is unpacked to the cache when the first of its rows is wanted. No code of a data set is run.
"""

import os
import re
from collections.abc import Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from imp_ds.data.files.lru_cache import LruCache
from imp_ds.data.files.storage import DEFAULT_ROOT, local_path, place
from imp_ds.data.sources.columns.classes import class_names
from imp_ds.data.sources.columns.embedded import embedded
from imp_ds.data.sources.format import Format, register_format
from imp_ds.data.sources.named_files import NamedFiles
from imp_ds.data.sources.parquet import ParquetReader
from imp_ds.data.sources.rows import RowReader, columns_beside, runs
from imp_ds.data.sources.splits import MAKE, NoSplit, Wanted
from imp_ds.data.sources.tar.index import make_indexes
from imp_ds.data.sources.unpacked import mapped_table, row_of
from imp_ds.data.sources.webdataset import TarReader
from imp_ds.errors import UserError
from imp_ds.json_files import read_json
from imp_ds.modalities.media import Media
from imp_ds.tasks import Source

_MAPPED = 64  # unpacked shards that are mapped at a time
_BATCH = 1000  # rows that are unpacked together
_NAME = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*", re.ASCII)  # of a data set on a hub
_SHOWN = 20  # names of a folder in a message


@register_format
class HuggingFaceFormat(Format):
    """Data sets of `datasets`."""

    kind = "huggingface"
    asks_hub = True

    def find(self, wanted: Wanted) -> None:
        """Raises NoSplit when there is no such split, and UserError for a data.root that is wrong, before a hub is asked."""
        _check_root(wanted)
        with _explained(wanted):
            there = _split_names(wanted)
        if wanted.called not in there:
            raise NoSplit(
                f"{wanted.source.path} has no split {wanted.called}", allowed=", ".join(there),
                fix=f'source.splits={{"{wanted.split}": "NAME"}} says what the split is called there',
            )  # fmt: skip

    def open_split(self, wanted: Wanted) -> RowReader:
        """The reader of a split. Raises UserError and Unreachable."""
        self.find(wanted)
        with _explained(wanted):
            return _streamed(wanted) if wanted.source.streaming else MapReader(wanted, _loaded(wanted))


class MapReader(RowReader):
    """The rows of a map-style data set, cut into runs. Args: as RowReader, and `rows`, the data set."""

    def __init__(self, wanted: Wanted, rows: datasets.Dataset):
        super().__init__(wanted, runs(len(rows)), _class_names(wanted, rows.features))
        self.rows, self._named = _undecoded(rows, self.source), _files_beside(wanted)

    def key(self, row: int) -> str:
        """The number of the row: rows of a data set have no names."""
        return str(row)

    def fields(self, row: int) -> Mapping:
        return self.rows[row]

    def media(self, row: int, column: str, value) -> Media:
        return _medium(self.name, row, column, value, self._named)


class StreamReader(RowReader):
    """The rows of a streamed data set, shard by shard. Args: as RowReader, and `rows`, the data set."""

    def __init__(self, wanted: Wanted, rows: datasets.IterableDataset):
        self.storage, self.features = wanted.storage, rows.features
        source = wanted.source
        self._what = f"stream {wanted.address} {source.path} {source.subset} {source.revision} {wanted.called} {wanted.columns}"
        self.rows, self._shards = _undecoded(rows, source), LruCache(_MAPPED)
        self._named = _files_beside(wanted)
        counts = []
        for shard in range(rows.num_shards):
            counts.append(self._count(shard))
            if wanted.progress is not None:
                wanted.progress(f"counting {wanted.name}, shards", shard + 1, rows.num_shards)
        super().__init__(wanted, counts, _class_names(wanted, rows.features))
        self._start_S = np.concatenate([[0], np.cumsum(self.shard_rows)])

    def key(self, row: int) -> str:
        """The number of the row."""
        return str(row)

    def fields(self, row: int) -> Mapping:
        shard = int(np.searchsorted(self._start_S, row, side="right")) - 1
        return row_of(self._shards.get(shard, lambda: self._unpacked(shard)), row - int(self._start_S[shard]))

    def media(self, row: int, column: str, value) -> Media:
        return _medium(self.name, row, column, value, self._named)

    def _count(self, shard: int) -> int:
        """The rows of a shard, known once it has been read through; the number is kept for longer than the rows may be."""

        def write(path: Path) -> None:
            path.write_text(str(sum(1 for _ in _part(self.rows, shard))))

        with self.storage.file_cache.open(f"count {shard} of {self._what}", write) as file:
            return int(file.read())

    def _unpacked(self, shard: int) -> pa.Table:
        write = partial(_unpack, self.rows, shard)
        return mapped_table(self.storage.file_cache.open(f"unpacked {shard} of {self._what}", write))


def _unpack(rows: datasets.IterableDataset, shard: int, path: Path) -> None:
    tables = _part(rows, shard).with_format("arrow").iter(batch_size=_BATCH)
    first = next(tables, pa.table({}))
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table.cast(first.schema))


def _part(rows: datasets.IterableDataset, shard: int) -> datasets.IterableDataset:
    return rows.shard(rows.num_shards, shard) if rows.num_shards > 1 else rows


def _streamed(wanted: Wanted) -> RowReader:
    """Our own reader where the files are Parquet or tar shards; else a StreamReader."""
    builder = datasets.load_dataset_builder(*_name(wanted), revision=wanted.source.revision)
    addresses = [str(address) for address in (builder.config.data_files or {}).get(wanted.called, [])]
    names = lambda: _class_names(wanted, builder.info.features)  # noqa: E731
    if addresses and all(address.endswith(".parquet") for address in addresses):
        return ParquetReader(wanted, [wanted.storage.file(address) for address in addresses], names())
    if addresses and all(address.endswith(".tar") for address in addresses):
        files = [wanted.storage.file(address) for address in addresses]
        make_indexes(wanted.storage, files, f"indexing {wanted.name}, shards", wanted.progress)
        return TarReader(wanted, files, names())
    rows = datasets.load_dataset(*_name(wanted), split=wanted.called, revision=wanted.source.revision, streaming=True)
    return StreamReader(wanted, rows)


def _loaded(wanted: Wanted) -> datasets.Dataset:
    folder = _saved(wanted)
    if folder is None:
        return datasets.load_dataset(*_name(wanted), split=wanted.called, revision=wanted.source.revision)
    found = datasets.load_from_disk(str(folder))
    return found[wanted.called] if isinstance(found, datasets.DatasetDict) else found


def _split_names(wanted: Wanted) -> list[str]:
    folder = _saved(wanted)
    if folder is None:
        return datasets.get_dataset_split_names(*_name(wanted), revision=wanted.source.revision)
    if (folder / "dataset_dict.json").is_file():
        splits = read_json(folder / "dataset_dict.json", dict).get("splits")
        return splits if isinstance(splits, list) else []
    split = read_json(folder / "state.json", dict).get("_split")
    return [split or wanted.called]


def _saved(wanted: Wanted) -> Path | None:
    """The folder that `save_to_disk` wrote, if the source is one."""
    path = local_path(wanted.address)
    there = path is not None and any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
    return path if there else None


def _name(wanted: Wanted) -> tuple[str, str | None]:
    """What `datasets` is asked for: a local path where there is one, else the name as it stands."""
    path = local_path(wanted.address)
    return (str(path) if path is not None and path.exists() else wanted.source.path), wanted.source.subset


def _check_root(wanted: Wanted) -> None:
    """Raise UserError where a path leads nowhere, and cannot be, or is hardly meant as, the name of a data set on a hub: that
    data.root is wrong is not for a hub to find out."""
    path, root = local_path(wanted.address), local_path(place(wanted.root, ""))
    if path is None or root is None or path.exists():
        return
    if root.exists() and not root.is_dir():
        raise UserError("data.root is no folder", got=root, fix="set data.root to the folder that source.path is relative to")
    if not root.exists() and wanted.root != DEFAULT_ROOT:
        raise UserError("data.root is not there", got=root, fix="set data.root; data.root=. serves where all data are on a hub")
    if not _NAME.fullmatch(wanted.source.path):
        there = ", ".join(sorted(os.listdir(root))[:_SHOWN]) or "nothing" if root.exists() else "nothing, it is not there"
        raise UserError(
            f"the data set {wanted.source.path} is not there", got=f"no {path}, and no name of a hub (NAME or USER/NAME)",
            allowed=f"in data.root: {there}", fix="set data.root and source.path",
        )  # fmt: skip


def _undecoded(rows, source: Source):
    """The columns that are read, with media as bytes and paths: `datasets` would decode them by packages of its own."""
    roles = source.roles()
    wanted = {getattr(source, role) for role in roles} | {source.label, *columns_beside(roles), *source.made_columns()}
    kept = [name for name in rows.column_names if name in wanted]
    rows = rows.select_columns(kept) if kept else rows
    for name in kept:
        feature = rows.features[name]
        if (changed := _undecoded_feature(feature)) != feature:
            rows = rows.cast_column(name, changed)
    return rows


def _undecoded_feature(feature):
    """The same feature, of which no media are decoded, wherever they stand in it."""
    if isinstance(feature, dict):
        return {name: _undecoded_feature(inner) for name, inner in feature.items()}
    if isinstance(feature, datasets.List):
        return datasets.List(_undecoded_feature(feature.feature), length=feature.length)
    is_media = isinstance(feature, (datasets.Image, datasets.Audio, datasets.Video))
    return type(feature)(decode=False) if is_media else feature


def _files_beside(wanted: Wanted) -> NamedFiles | None:
    """The files that rows may name: those of a folder of this machine that the source is."""
    path = local_path(wanted.address)
    return NamedFiles(wanted.storage, wanted.address, "", []) if path is not None and path.is_dir() else None


def _medium(reader: str, row: int, column: str, value, beside: NamedFiles | None) -> Media:
    """An image, a video or audio. A path in a row of ours was written by `datasets` when it made the rows, not by strangers."""
    if isinstance(value, Mapping) and value.get("bytes") is None and isinstance(value.get("path"), str):
        path = Path(value["path"])
        if path.is_absolute():
            return Media(str(path), path=path)
    return embedded(value, f"{reader}/{row}/{column}", f"{reader}, row {row + 1}, {column!r}", beside)


def _class_names(wanted: Wanted, features) -> list[str] | None:
    feature = (features or {}).get(wanted.source.label)
    return class_names(wanted, wanted.address, found=getattr(feature, "names", None))


@contextmanager
def _explained(wanted: Wanted):
    """Turn what `datasets` raises into what the user can do."""
    try:
        yield
    except UserError:
        raise
    except (datasets.exceptions.DatasetNotFoundError, FileNotFoundError) as error:
        below = f"a data set of a hub, or a folder {wanted.address}"
        raise NoSplit(f"the data set {wanted.source.path} is not there", got=_line(error), allowed=below, fix=MAKE) from error
    except (datasets.exceptions.DatasetsError, ValueError, RuntimeError, ConnectionError) as error:
        fix = "see source.path, source.subset, source.revision and source.splits"
        raise UserError(f"the data set {wanted.source.path} cannot be opened", got=_line(error), fix=fix) from error


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
