"""Folders of media without metadata: one folder for each class, as torchvision and imagefolder have them."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from imp_ds.data.files.index import IndexWriter, cached_index
from imp_ds.data.files.index_names import COLUMNS, append_names, name_at
from imp_ds.data.files.storage import Storage, local_path
from imp_ds.data.sources.named_files import NamedFiles
from imp_ds.data.sources.rows import RowReader, runs
from imp_ds.data.sources.splits import Wanted
from imp_ds.modalities.media import Media


class ClassFolderReader(RowReader):
    """A row for each file right in a class's folder, in the order of the names: columns `file_name` and `label`. Hidden files and
    folders, and folders inside those of classes, are passed over.

    Args: as RowReader, and
        folder: the one that holds the classes' folders.
        classes: their names, sorted.
    """

    def __init__(self, wanted: Wanted, folder: str, classes: list[str], class_names: list[str] | None):
        self.storage, self.folder, self.classes = wanted.storage, folder, classes
        self.stamp = _stamp(self.storage, folder, classes)
        self._named = NamedFiles(self.storage, folder, self.stamp)
        self._open(wanted.progress)
        super().__init__(wanted, runs(len(self._index["name_end"])), class_names)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_index"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open(None)

    def key(self, row: int) -> str:
        return self.fields(row)["file_name"]

    def fields(self, row: int) -> Mapping:
        label = self.classes[int(np.searchsorted(self._index["class_end"], row, side="right"))]
        return {"file_name": f"{label}/{name_at(self._index, row)}", "label": label}

    def media(self, row: int, column: str, value) -> Media:
        return self._named.media(value, f"{self.folder}, row {row + 1}")

    def _open(self, progress: Callable | None) -> None:
        make = partial(_write_index, self.storage, self.folder, self.classes, progress)
        self._index = cached_index(self.storage.file_cache, f"class folders 2 {self.folder} {self.stamp}", make).columns


def _stamp(storage: Storage, folder: str, classes: list[str]) -> str:
    """Another one when a file was added or removed: a local folder shows it by its time, a remote one only by its list."""
    seen = hashlib.sha256(json.dumps(classes).encode())
    for name in classes:
        path = local_path(f"{folder}/{name}")
        what = os.stat(path).st_mtime_ns if path is not None else _file_names(storage, f"{folder}/{name}")
        seen.update(repr(what).encode())
    return seen.hexdigest()


def _write_index(storage: Storage, folder: str, classes: list[str], progress: Callable | None, path: Path) -> None:
    """Write the names, and the column `class_end`, the row at which each class ends."""
    writer = IndexWriter(path, class_end="int64", **COLUMNS)
    end = row = 0
    for done, name in enumerate(classes, start=1):
        names = _file_names(storage, f"{folder}/{name}")
        end, row = append_names(writer, names, end), row + len(names)
        writer.append("class_end", [row])
        if progress is not None:
            progress(f"listing the classes of {folder.rpartition('/')[2]}", done, len(classes))
    writer.close()


def _file_names(storage: Storage, folder: str) -> list[str]:
    return sorted(name for name in storage.names(folder) if not name.startswith("."))
