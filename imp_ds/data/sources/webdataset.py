"""Tar shards in the WebDataset convention: members with one name up to the first dot are one sample, their extensions its fields.

Read by our own index and by pread: no command is run, nothing is unpickled, nothing is unpacked to disk.
"""

import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

from imp_ds.data.files.lru_cache import LruCache
from imp_ds.data.files.storage import File
from imp_ds.data.sources.columns.classes import class_names
from imp_ds.data.sources.columns.values import written_label
from imp_ds.data.sources.format import Format, register_format
from imp_ds.data.sources.rows import RowReader, no_field
from imp_ds.data.sources.splits import Wanted, shards
from imp_ds.data.sources.tar.index import CUT, TEXTS, UNSAFE, TarIndex, TarSample, make_indexes, open_index, short_text
from imp_ds.errors import UserError
from imp_ds.json_files import parse_json
from imp_ds.modalities.media import BadSample, Media, shown

_OPEN = 64  # shards that are open at a time
_MOST_TEXT = 1 << 24  # bytes of a text or a JSON member
_MOST_MEDIA = 1 << 31  # bytes of an image, a video or a recording


@register_format
class WebDatasetFormat(Format):
    """Tar shards in the WebDataset convention."""

    kind = "webdataset"

    def find(self, wanted: Wanted) -> None:
        """Raises NoSplit when there is no such split, and Unreachable."""
        shards(wanted, ".tar")

    def open_split(self, wanted: Wanted) -> RowReader:
        """The reader of a split; indexes that are missing are made. Raises UserError and Unreachable."""
        files = shards(wanted, ".tar")
        make_indexes(wanted.storage, files, f"indexing {wanted.name}, shards", wanted.progress)
        return TarReader(wanted, files, class_names(wanted, wanted.folder(".tar")))


class _Found(NamedTuple):
    """A row: the number of its shard, what the index says of it, its key."""

    place: int
    sample: TarSample
    key: str


class TarReader(RowReader):
    """The samples of tar shards. Args: as RowReader, and `files`."""

    def __init__(self, wanted: Wanted, files: list[File], class_names: list[str] | None):
        self.storage, self.files, self._names = wanted.storage, files, [file.name for file in files]
        self._shards, self._indexes = LruCache(_OPEN), LruCache(_OPEN)
        self._last: tuple[int, _Found] | None = None
        indexes = [(len(index), index.damage, index.torn) for index in map(self._index, range(len(files)))]
        super().__init__(wanted, [samples for samples, _, _ in indexes], class_names)
        self.damage = [f"{file.address}: {damage}" for file, (_, damage, _) in zip(files, indexes) if damage is not None]
        for file, (_, _, torn) in zip(files, indexes):
            if torn:
                raise UserError(
                    f"{file.address}: the members of a sample do not stand together", got=f"{torn}, with others in between",
                    fix="sort the tar by name: tar --sort=name -cf NEW.tar FOLDER",
                )  # fmt: skip
        self._start_F = [0, *np.cumsum(self.shard_rows).tolist()]

    def key(self, row: int) -> str:
        """The shard, and the name that the sample's members share."""
        return self._found(row).key

    def fields(self, row: int) -> Mapping:
        place, sample, key = self._found(row)
        if sample.state == UNSAFE:
            raise BadSample("unsafe name", f"{self.files[place].address}: {sample.key} is a link or leads out")
        if sample.state == CUT:
            raise BadSample("cut off", f"{self.files[place].address}: {sample.key}")
        return Members(sample.members, partial(self._read, place), self.source.label, self.class_places, key)

    def media(self, row: int, column: str, value) -> Media:
        place, _, key = self._found(row)
        if not isinstance(value, tuple):
            value = self._named(row, column, value)
        extension, offset, size = value
        name = f"{self.files[place].address}/{key}.{extension}"
        return Media(name, read=partial(self._read, place, offset, size, _MOST_MEDIA))

    def members(self, row: int) -> dict[str, object]:
        members = sorted(self._found(row).sample.members.items())
        return {name: (name, *place) for name, place in members if name.rpartition(".")[2] not in TEXTS}

    def _named(self, row: int, column: str, name) -> tuple[str, int, int]:
        """The member that a text names: by its extension, or by its name, with or without a folder. Raises BadSample."""
        place, sample, _ = self._found(row)
        where, there = f"{self.files[place].address}, {sample.key}, {column!r}", self.members(row)
        if not isinstance(name, str):
            raise no_field(name, where)
        extension = name.rpartition("/")[2].removeprefix(f"{sample.key.rpartition('/')[2]}.")
        for known in (name, extension, extension.lower()):
            if known in there:
                return there[known]
        raise BadSample("missing file", f"{where}: the sample has no member {shown(name)}, but {', '.join(there) or 'no media'}")

    def _found(self, row: int) -> _Found:
        """Kept for the row asked for last: a row is asked for several times in succession."""
        if self._last is None or self._last[0] != row:
            place = bisect_right(self._start_F, row) - 1
            sample = self._index(place).sample(row - self._start_F[place])
            self._last = row, _Found(place, sample, f"{self._names[place]}/{sample.key}")
        return self._last[1]

    def _index(self, place: int) -> TarIndex:
        return self._indexes.get(place, lambda: open_index(self.storage, self.files[place]))

    def _read(self, place: int, offset: int, size: int, most: int) -> bytes:
        if size > most:
            raise BadSample("too large", f"{self.files[place].address}: a member of {size} bytes")
        shard = self._shards.get(place, lambda: self.storage.open(self.files[place]))
        data = os.pread(shard.fileno(), size, offset)
        if len(data) < size:
            raise BadSample("cut off", f"{self.files[place].address}: {len(data)} of {size} bytes at {offset}")
        return data


class Members(Mapping):
    """column -> value of one sample. A column is an extension, several ("jpg;png": whichever is there), or a field of a JSON
    member ("json.caption"). Texts and numbers are read; media are (extension, offset, size)."""

    def __init__(self, members: dict[str, tuple[int, int]], read, label: str | None, class_places, where: str):
        self._members, self._read_bytes, self._label, self._class_places = members, read, label, class_places
        self._where, self._objects = where, {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, column) -> bool:
        extension, field = self._resolved(column)
        return extension is not None and (field is None or field in self._object(extension))

    def __getitem__(self, column: str):
        value = self.get(column, self)
        if value is self:
            raise KeyError(column)
        return value

    def get(self, column: str, default=None):
        extension, field = (column, None) if column in self._members else self._resolved(column)
        if extension is None:
            return default
        if field is not None:
            return self._object(extension).get(field, default)
        offset, size = self._members[extension]
        if extension.rpartition(".")[2] not in TEXTS:
            return extension, offset, size
        text = self._text(extension)
        return written_label(text, self._class_places) if column == self._label else text.strip()

    def _resolved(self, column: str) -> tuple[str | None, str | None]:
        """(extension, field of its object) of a column; (None, None) when it is not there."""
        for name in column.split(";"):
            if name in self._members:
                return name, None
            extension, dot, field = name.partition(".")
            if dot and extension == "json" and extension in self._members:
                return extension, field
        return None, None

    def _object(self, extension: str) -> dict:
        if extension not in self._objects:
            try:
                found = parse_json(self._text(extension), f"{self._where}.{extension}", dict)
            except UserError as error:
                raise BadSample("bad JSON", error.one_line) from None
            self._objects[extension] = found
        return self._objects[extension]

    def _text(self, extension: str) -> str:
        offset, size = self._members[extension]
        try:
            text = short_text(offset, size) if offset < 0 else self._read_bytes(offset, size, _MOST_TEXT)
            return text.decode("utf-8")
        except UnicodeDecodeError as error:
            kind = "bad JSON" if extension == "json" else "wrong column"
            raise BadSample(kind, f"{self._where}.{extension} is not UTF-8: {error}") from None
