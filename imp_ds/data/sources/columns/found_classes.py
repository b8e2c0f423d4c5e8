"""Class names that a column of strings gives: all that stand in it in the training split, sorted; a blank one is no label."""

import json
from functools import partial
from pathlib import Path

from imp_ds.data.files.storage import Storage
from imp_ds.data.sources.rows import RowReader, nested
from imp_ds.errors import UserError
from imp_ds.json_files import parse_json
from imp_ds.modalities.media import BadSample
from imp_ds.modalities.text.captions import is_visible

_MOST = 100_000  # a column with more different strings holds no classes


def names_in(reader: RowReader, storage: Storage) -> list[str] | None:
    """The names, or None where the column of labels holds indices. Kept in the cache, for as long as the files are the same.

    Raises UserError for a column of more than a hundred thousand different strings.
    """
    stamps = [f"{file.address} {file.stamp}" for file in getattr(reader, "files", [])]
    if not stamps:
        return _names(reader)
    key = f"names of classes {stamps} {reader.source.label} {reader.source.delimiter}"
    with storage.file_cache.open(key, partial(_write, reader), of_others=True) as file:
        return parse_json(file.read(), "the class names in the cache", (list, type(None)))


def _write(reader: RowReader, path: Path) -> None:
    path.write_text(json.dumps(_names(reader)), encoding="utf-8")


def _names(reader: RowReader) -> list[str] | None:
    found, column, labels = set(), reader.source.label, reader.only("label")
    for row in range(len(labels)):
        try:
            value = nested(labels.fields(row), column)
        except BadSample:
            continue
        if isinstance(value, str):
            found.update([value] if is_visible(value) else [])
        elif isinstance(value, (bool, int, float)):
            return None
        if len(found) > _MOST:
            raise UserError(
                f"{reader.name}: the column {column!r} holds more different texts than classes could be",
                got=f"more than {_MOST:,}", fix="set source.label to the column of the class, or source.label_names",
            )  # fmt: skip
    return sorted(found) or None
