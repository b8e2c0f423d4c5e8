"""What the readers of all formats share: from the fields of a row to a sample, and the checks when a source is opened."""

import copy
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from imp_ds.data.sources.columns.values import label
from imp_ds.data.sources.splits import Wanted
from imp_ds.errors import UserError
from imp_ds.modalities.media import BadSample, Media, RawSample, shown
from imp_ds.modalities.modality import files_of, get_modality
from imp_ds.overrides import nearest

_MISSING = object()
RUN = 4096  # rows of a shard where the format has none


class RowReader:
    """A Reader (`imp_ds.data.reader`) over rows with named fields. A format gives `key`, `fields` and `media`.

    Args:
        wanted: the split.
        shard_rows: rows of each shard, [S].
        class_names: in the order of the labels, or None.
    """

    def __init__(self, wanted: Wanted, shard_rows: Sequence[int], class_names: list[str] | None):
        self.name, self.source = wanted.name, wanted.source
        self.class_names = self.class_places = None
        if class_names is not None:
            self.name_classes(class_names)
        self.shard_rows = np.asarray(shard_rows, dtype=np.int64)
        self.damage: list[str] = []
        self._read_roles(self.source.roles())
        self._rows = int(self.shard_rows.sum())

    def __len__(self) -> int:
        return self._rows

    def name_classes(self, names: list[str]) -> None:
        """Give the classes names: a label may then be one of them."""
        self.class_names, self.class_places = names, {name: place for place, name in enumerate(names)}

    def only(self, *roles: str) -> "RowReader":
        """The same rows, of which no more than these roles are read."""
        reader = copy.copy(self)
        reader._read_roles([role for role in self.roles if role in roles])
        return reader

    def _read_roles(self, roles: list[str]) -> None:
        """Read these roles, each from its column; text by templates is made of the label."""
        self.roles, columns = roles, {role: getattr(self.source, role) for role in roles}
        self.made = {role: made for role in roles if (made := self.source.made_of(role))}
        named = {role: column for role, column in columns.items() if role not in self.made}
        self.columns = {role: self.source.label if column is None else column for role, column in named.items()}
        labels = [self.source.label] if self.made and self.source.label is not None else []
        self.columns_read = [*self.columns.values(), *columns_beside(roles), *self._made_columns(), *labels]

    def read(self, row: int) -> RawSample:
        """All roles of the row. Raises BadSample."""
        fields, sample = self.fields(row), {}
        for role, column in self.columns.items():
            value = nested(fields, column)
            if value is _MISSING:
                there = ", ".join(fields) or "nothing"
                raise BadSample("missing column", f"row {row + 1} has no {column!r} (source.{role}), but {there}")
            sample[role] = self._value(role, row, column, value, fields)
        for role, made in self.made.items():
            sample[role] = get_modality(role).make(made, f"row {row + 1}", _Row(self, row, "", None, fields))
        return sample

    def class_name(self, row: int, fields: Mapping) -> str:
        """The name of the row's class. Raises BadSample for a row without one."""
        value, where = nested(fields, self.source.label), f"row {row + 1}, {self.source.label!r}"
        return self.class_names[label(None if value is _MISSING else value, self.class_places, where)]

    def _made_columns(self) -> list[str]:
        return [column for role, made in self.made.items() for column in get_modality(role).made_columns(made)]

    def _value(self, role: str, row: int, column: str, value, fields: Mapping):
        where = f"row {row + 1}, {column!r}"
        if role == "label":
            return label(value, self.class_places, where)
        if getattr(self.source, role) is None:  # a text made of the class
            name = self.class_names[label(value, self.class_places, where)]
            return [template.replace("{}", name) for template in self.source.templates]
        return get_modality(role).read(value, where, _Row(self, row, column, value, fields))

    def key(self, row: int) -> str:
        """A name of the row that stays the same, whatever is done with the others."""
        raise NotImplementedError

    def fields(self, row: int) -> Mapping:
        """column -> value, at least of the columns that are read and are there. Raises BadSample."""
        raise NotImplementedError

    def media(self, row: int, column: str, value) -> Media:
        """The image, video or audio that a field is or names. Raises BadSample."""
        raise NotImplementedError

    def members(self, row: int) -> dict[str, object]:
        """Media that stand in the row under names of their own: name -> value, as `media` takes it."""
        return {}


class _Row:
    """`imp_ds.modalities.modality.Row` of a reader."""

    def __init__(self, reader: RowReader, row: int, column: str, value, fields: Mapping):
        self._reader, self._row, self._column, self._value, self._fields = reader, row, column, value, fields

    def media(self, value=_MISSING, part: str = "") -> Media:
        return self._reader.media(self._row, f"{self._column}{part}", self._value if value is _MISSING else value)

    def beside(self, column: str):
        outer = self._column.rpartition(".")[0]
        found = nested(self._fields, f"{outer}.{column}") if outer else _MISSING
        found = nested(self._fields, column) if found is _MISSING else found
        return None if found is _MISSING else found

    def column(self, name: str):
        if not name:
            return self._reader.class_name(self._row, self._fields)
        if (found := nested(self._fields, name)) is _MISSING:
            there = ", ".join(self._fields) or "nothing"
            raise BadSample("missing column", f"row {self._row + 1} has no {name!r}, but {there}")
        return found

    def members(self) -> dict[str, object]:
        return self._reader.members(self._row)


def checked(reader: RowReader) -> RowReader:
    """The reader, after a look at its first and last row: a mistake in the whole source is said before training starts.

    Raises UserError when there are no rows, the first lacks a column, neither of the two can be used, or no row has a label.
    """
    if not len(reader):
        raise UserError(f"{reader.name} has no rows", fix="see that the data were written, and that source.path is right")
    first = _fault(reader, 0)
    if first is None or first.reason != "missing column" and _fault(reader, len(reader) - 1) is None:
        return reader
    if first.reason == "no label" and _any_label(reader):
        return reader
    raise UserError(f"{reader.name}: its samples cannot be read: {first.reason}", got=first.detail, fix=_mend(reader, first))


def _fault(reader: RowReader, row: int) -> BadSample | None:
    try:
        for files in files_of(reader.read(row)).values():
            for file in files:
                file.open().close()
    except BadSample as error:
        return error
    return None


def _any_label(reader: RowReader) -> bool:
    """Whether a row has what may be a label: cells that are empty are no mistake of the whole source."""
    rows = reader.only("label", "text") if reader.source.text is None else reader.only("label")
    faults = (_fault(rows, row) for row in range(len(rows)))
    return any(fault is None for fault in faults)


def _mend(reader: RowReader, fault: BadSample) -> str:
    if fault.reason in ("missing column", "wrong column", "no such class"):
        named = [get_modality(role).made_of if role in reader.made else role for role in (*reader.columns, *reader.made)]
        return "name the columns that are there: " + ", ".join(f"source.{field}" for field in named)
    if fault.reason == "no label":
        return f"fill the column {reader.source.label!r}, of which every cell is empty; or name another as source.label"
    if fault.reason == "unsafe name":
        return 'name the folders that may be read: source.media_root=["/DIR"]; or give names below the source\'s folder'
    return "mend the data, or set source.path and data.root to where they are"


def columns_beside(roles: Iterable[str]) -> list[str]:
    """Columns that these roles read beside their own, in rows that have them."""
    return [column for role in roles if role != "label" for column in get_modality(role).beside]


def check_columns(origin: str, there: Sequence[str], wanted: Iterable[str], fix: str | None = None) -> None:
    """Raise UserError unless each wanted column of a table is there, once; `fix` says how one may be missing. Of a nested column,
    a.b, the outer one counts."""
    for column in wanted:
        outer = column if column in there else column.partition(".")[0]
        if outer not in there:
            raise UserError(f"{origin} lacks a column", got=repr(column), allowed=nearest(column, map(str, there)), fix=fix)
        if list(there).count(outer) > 1:
            raise UserError(f"{origin} has a column twice", got=repr(outer), fix="rename one of them in the file")


def nested(fields: Mapping, column: str):
    """The value of a column, or of a part of one: a.b is what stands under b in a; _MISSING where it is not there."""
    if column in fields or "." not in column:
        return fields.get(column, _MISSING)
    outer, _, inner = column.partition(".")
    found = fields.get(outer, _MISSING)
    return nested(found, inner) if isinstance(found, Mapping) else _MISSING


def runs(rows: int) -> list[int]:
    """The rows of a file without shards, cut into runs."""
    return [min(RUN, rows - begin) for begin in range(0, rows, RUN)]


def no_field(value, where: str) -> BadSample:
    """The error for a field that is neither media nor the name of a file."""
    return BadSample("wrong column", f"{where} is neither a media file nor the name of one: {shown(value)}")
