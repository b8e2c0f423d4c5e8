"""Rows that are lines: of JSON lines, CSV or TSV, which name media files beside them, and of plain text."""

import csv
import hashlib
from collections.abc import Callable, Mapping

import numpy as np

from imp_ds.data.files.index_lines import Lines
from imp_ds.data.files.lru_cache import LruCache
from imp_ds.data.files.storage import File
from imp_ds.data.files.text_encoding import decoded
from imp_ds.data.sources.columns.values import written_label
from imp_ds.data.sources.rows import RowReader, check_columns, runs
from imp_ds.data.sources.splits import Wanted
from imp_ds.errors import UserError
from imp_ds.json_files import parse_json
from imp_ds.modalities.media import BadSample, Media, shown
from imp_ds.modalities.modality import get_modality

_OPEN = 64  # files that are open at a time
_DELIMITERS = (",", ";", "\t", "|")


class LineReader(RowReader):
    """The rows of one or several files of lines, parsed when they are read.

    .jsonl: an object in each line; .csv and .tsv: a record in each, after a header; .txt: a text in each, the column `text`.

    Args: as RowReader, and
        files: of one of these kinds; the names in them are relative to their folder.
    """

    def __init__(self, wanted: Wanted, files: list[File], class_names: list[str] | None):
        self.storage, self.files, self._given_delimiter = wanted.storage, files, wanted.source.delimiter
        self._columns_read = wanted.columns
        self._lines, self.headers, rows_F = LruCache(_OPEN), [], []
        for place, file in enumerate(files):
            lines = self._open(place, wanted.progress)
            self.headers.append(self._header(lines, file) if _is_table(file) else None)
            rows_F.append(max(0, len(lines) - (self.headers[-1] is not None)))
        super().__init__(wanted, [run for rows in rows_F for run in runs(rows)], class_names)
        self.start_F = np.concatenate([[0], np.cumsum(rows_F, dtype=np.int64)])
        self._named = [wanted.named_files(file) for file in files]

    def key(self, row: int) -> str:
        """The name of its first file, or what stands for its line."""
        try:
            fields = self.fields(row)
        except BadSample:
            fields = {}
        columns = [column for role, column in self.columns.items() if role != "label" and get_modality(role).names_a_file]
        named = [fields.get(column) for column in columns]
        if named and isinstance(named[0], str):
            return named[0]
        place, number = self._place(row)
        try:
            return "line-" + hashlib.sha256(self._open(place).read(number).strip()).hexdigest()[:16]
        except BadSample:
            return f"row {row + 1}"

    def fields(self, row: int) -> Mapping:
        place, number = self._place(row)
        line, header = self._open(place).read(number), self.headers[place]
        where = f"{self.files[place].address}, row {number + 1}"
        if header is None:
            return {"text": decoded(line, where).strip()} if self.files[place].name.endswith(".txt") else _object(line, where)
        record, column = _record(line, header, where, self._delimiter(self.files[place])), self.source.label
        return record | {column: written_label(record[column], self.class_places)} if column in record else record

    def media(self, row: int, column: str, value) -> Media:
        place, number = self._place(row)
        value = value.get("path") if isinstance(value, Mapping) else value
        return self._named[place].media(value, f"{self.files[place].address}, row {number + 1}, {column!r}")

    def _place(self, row: int) -> tuple[int, int]:
        """(file, number of the line in it) of a row."""
        place = int(np.searchsorted(self.start_F, row, side="right")) - 1
        return place, row - int(self.start_F[place]) + (self.headers[place] is not None)

    def _open(self, place: int, progress: Callable | None = None) -> Lines:
        file = self.files[place]
        kind = "records" if _is_table(file) else "lines"
        return self._lines.get(place, lambda: Lines(self.storage, file, kind, progress, self._delimiter(file)))

    def _delimiter(self, file: File) -> str:
        return self._given_delimiter or ("\t" if file.name.endswith(".tsv") else ",")

    def _header(self, lines: Lines, file: File) -> list[str]:
        """The names of the columns. Raises UserError for one that stands twice or is not there, and for an empty file."""
        text = lines.read(0).decode("utf-8", "replace") if len(lines) else ""
        delimiter, wanted = self._delimiter(file), self._columns_read
        names = next(csv.reader([text], delimiter=delimiter), [])
        if not names:
            fix = f"write into it the line {delimiter.join(wanted)!r}, and a row for each sample"
            raise UserError(f"{file.address} is empty", fix=fix)
        check_columns(file.address, names, wanted, _why_missing(text, names, delimiter, wanted))
        return names


def _why_missing(text: str, names: list[str], delimiter: str, wanted: list[str]) -> str:
    """The likely cause where the first line of a table lacks a wanted column, and how to mend it."""
    marks = [mark for mark in _DELIMITERS if mark != delimiter and mark in text]
    split = {mark: next(csv.reader([text], delimiter=mark), []) for mark in marks}
    for mark in marks:
        if len(names) == 1 or set(wanted) <= set(split[mark]):
            return f"its columns are separated by {mark!r}: set source.delimiter={mark!r}"
    first = delimiter.join(wanted)
    return f"name a column that is there; or, where the first line is no header, write one above it: {first!r}"


def _object(line: bytes, where: str) -> dict:
    try:
        return parse_json(line, where, dict)
    except UserError as error:
        raise BadSample("bad JSON", f"{error.one_line}: {shown(line.strip())}") from None


def _is_table(file: File) -> bool:
    return file.name.endswith((".csv", ".tsv"))


def _record(line: bytes, header: list[str], where: str, delimiter: str) -> dict:
    try:
        cells = next(csv.reader(decoded(line, where).splitlines(keepends=True), delimiter=delimiter), [])
    except csv.Error as error:
        raise BadSample("wrong column", f"{where} is not a record: {error}") from None
    return dict(zip(header, cells))
