"""Folders of media with their captions beside them, 1.jpg and 1.txt, or of media alone; also in folders below."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from imp_ds.data.files.index import IndexWriter, cached_index
from imp_ds.data.files.index_names import COLUMNS, append_names, name_at
from imp_ds.data.files.storage import File, Storage, local_path
from imp_ds.data.files.text_encoding import decoded
from imp_ds.data.sources.rows import RowReader, runs
from imp_ds.data.sources.splits import NoSplit, Wanted
from imp_ds.modalities.media import BadSample, Media

_NO_MEDIA = (".txt", ".json", ".jsonl", ".csv", ".tsv", ".md")
_MOST_TEXT = 1 << 24  # bytes of a caption's file


class PairReader(RowReader):
    """A row for each medium with a .txt of its name, or, where no text is read, for each medium, in the order of their names.
    Columns are `file_name`, and `text`, the lines of the .txt, each of which is a caption. Hidden files, .txt and tables are no
    media.

    Args: as RowReader, and `folder`.
    """

    def __init__(self, wanted: Wanted, folder: str):
        self.storage, self.folder = wanted.storage, folder
        paired = wanted.source.text is not None or "text" in wanted.source.made_columns()
        names = list(_media(wanted.storage, folder, paired))
        if not names:
            media = "media with a .txt each" if paired else "media"
            raise NoSplit(
                f"{folder} has no metadata.jsonl", got=f"no metadata.csv or .tsv, and no {media}",
                fix="write one of them, or set source.path and source.splits",
            )  # fmt: skip
        path = local_path(folder)
        changed = None if path is None else os.stat(path).st_mtime_ns  # when a file was last added, removed or renamed
        self.stamp = hashlib.sha256("\n".join([*names, str(changed)]).encode("utf-8", "surrogateescape")).hexdigest()
        self._named = wanted.named_files(File(f"{folder}/.", -1, self.stamp))
        self._open(names)
        super().__init__(wanted, runs(len(names)), None)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_index"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open(None)

    def key(self, row: int) -> str:
        return name_at(self._index, row)

    def fields(self, row: int) -> Mapping:
        name = self.key(row)
        fields = {"file_name": name}
        if "text" in self.columns_read:
            media = self._named.media(f"{name.rpartition('.')[0]}.txt", f"{self.folder}, row {row + 1}")
            with media.open() as file:
                text = file.read(_MOST_TEXT + 1)
            if len(text) > _MOST_TEXT:
                raise BadSample("too large", f"{media.name}: a caption of more than {_MOST_TEXT} bytes")
            fields["text"] = decoded(text, media.name).splitlines()
        return fields

    def media(self, row: int, column: str, value) -> Media:
        return self._named.media(value, f"{self.folder}, row {row + 1}")

    def _open(self, names: list[str] | None) -> None:
        make = partial(_write_index, names or [])
        self._index = cached_index(self.storage.file_cache, f"pairs {self.folder} {self.stamp}", make).columns


def _media(storage: Storage, folder: str, paired: bool, below: str = "") -> Iterator[str]:
    """Names of media, of those with a .txt alone where they are paired, relative to the folder, sorted folder by folder."""
    names = [name for name in storage.names(f"{folder}/{below}".rstrip("/")) or [] if not name.startswith(".")]
    texts = {name[:-4] for name in names if name.endswith(".txt")}
    media = (name for name in names if not name.endswith(_NO_MEDIA))
    yield from (below + name for name in media if not paired or name.rpartition(".")[0] in texts)
    for inner in storage.names(f"{folder}/{below}".rstrip("/"), folders=True) or []:
        if not inner.startswith("."):
            yield from _media(storage, folder, paired, f"{below}{inner}/")


def _write_index(names: list[str], path: Path) -> None:
    writer = IndexWriter(path, **COLUMNS)
    append_names(writer, names)
    writer.close()
