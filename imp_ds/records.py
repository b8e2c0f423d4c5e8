"""What all records of a run's configuration share: which keys and values none of them takes, whatever the field."""

import typing
from functools import cache

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator
from pydantic.fields import FieldInfo

from imp_ds.terminal.printable import is_text

LARGEST = 1 << 53  # of an integer: what every part of the program, and JSON elsewhere, can hold exactly
LONGEST = 100_000  # characters of a text


class Record(BaseModel):
    """A record that refuses unknown keys, numbers that are infinite or none, integers that are too large to count with,
    truth values in place of numbers, and texts with control characters or without end."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _is_plain(cls, data):
        for name, value in data.items() if isinstance(data, dict) else ():
            try:
                _check(value, name in fields_of(cls) and _takes_numbers(cls, name))
            except ValueError as error:
                raise ValueError(f"{name} is {error}") from None
        return data

    def kind_of(self, field: str) -> type[BaseModel] | None:
        """The record that a field with free keys is checked as, so that they can be set one by one; None: it has no such keys."""
        return None


class OpenRecord(Record):
    """A record with fields beside its own that others contribute, such as one for each modality that is registered.

    A subclass says by `more_fields` which there are now. They behave as its own do: checked, dumped, found by `--set`.
    """

    model_config = ConfigDict(extra="allow")

    @classmethod
    def more_fields(cls) -> dict[str, FieldInfo]:
        """The contributed fields by name."""
        raise NotImplementedError

    @model_validator(mode="before")
    @classmethod
    def _more_fields_are_valid(cls, data):
        if not isinstance(data, dict):
            return data
        more = cls.more_fields()
        found, errors = {name: value for name, value in data.items() if name in cls.model_fields}, []
        errors += [_unknown(name, data[name]) for name in data if name not in found and name not in more]
        for name, field in more.items():
            if name in data:
                try:
                    found[name] = _adapter(field).validate_python(data[name])
                except ValidationError as error:
                    errors += [_inside(name, line) for line in error.errors()]
            elif field.default is not None:
                found[name] = field.get_default(call_default_factory=True)
        if errors:
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return {name: value for name, value in found.items() if name in cls.model_fields or value is not None}

    def __setattr__(self, name, value):
        """A contributed field is checked as any other."""
        more = type(self).more_fields()
        super().__setattr__(name, _adapter(more[name]).validate_python(value) if name in more else value)

    def __getattr__(self, name):
        """Called for what is not set."""
        more = {} if name.startswith("_") else type(self).more_fields()
        if name in more and name not in (self.__pydantic_extra__ or {}):
            return more[name].get_default(call_default_factory=True)
        return super().__getattr__(name)


def fields_of(kind: type[BaseModel]) -> dict[str, FieldInfo]:
    """All fields of a record class, those that others contribute too."""
    return dict(kind.model_fields) | (kind.more_fields() if issubclass(kind, OpenRecord) else {})


def field(annotation, default, description: str) -> FieldInfo:
    """A field that is contributed to an `OpenRecord`."""
    return FieldInfo(annotation=annotation, default=default, description=description)


def annotation_of(field: FieldInfo):
    """The annotation of a field with its limits."""
    return typing.Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


_ADAPTERS: dict[int, tuple[FieldInfo, TypeAdapter]] = {}
_FINITE = ConfigDict(allow_inf_nan=False)


def _adapter(field: FieldInfo) -> TypeAdapter:
    """Made once for each field; the field is kept, so that its id stays its own."""
    if id(field) not in _ADAPTERS:
        is_record = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)  # which has its own
        _ADAPTERS[id(field)] = field, TypeAdapter(annotation_of(field), config=None if is_record else _FINITE)
    return _ADAPTERS[id(field)][1]


def _unknown(name: str, value) -> dict:
    return {"type": "extra_forbidden", "loc": (name,), "input": value}


def _inside(name: str, line: dict) -> dict:
    return {"type": line["type"], "loc": (name, *line["loc"]), "input": line["input"], "ctx": line.get("ctx", {})}


@cache
def _takes_numbers(kind: type[BaseModel], field: str) -> bool:
    """Whether a field takes numbers and no truth values."""
    found = set(_parts(fields_of(kind)[field].annotation))
    return bool(found & {int, float}) and bool not in found


def _parts(annotation) -> list:
    inner = typing.get_args(annotation)
    return [part for one in inner for part in _parts(one)] if inner else [annotation]


def _check(value, numbers: bool) -> None:
    if isinstance(value, bool):
        if numbers:
            raise ValueError("true or false where a number is expected")
    elif isinstance(value, int):
        if abs(value) > LARGEST:
            raise ValueError(f"an integer beyond {LARGEST}")
    elif isinstance(value, str):
        if len(value) > LONGEST:
            raise ValueError(f"a text of more than {LONGEST} characters")
        if any(character < " " and character not in "\t\n\r" or character == "\x7f" for character in value):
            raise ValueError("a text with control characters")
        if not is_text(value):
            raise ValueError("not UTF-8, which no configuration could hold")
    elif isinstance(value, (list, tuple)):
        for part in value:
            _check(part, numbers)
    elif isinstance(value, dict):
        for name, part in value.items():
            _check(name, False)
            _check(part, numbers)


def records_inside(annotation) -> list[type[BaseModel]]:
    """The record classes that a field of this annotation may hold; of one with `kinds`, as that of objectives, those."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return list(annotation.kinds.values()) if "kinds" in vars(annotation) else [annotation]
    return [kind for part in typing.get_args(annotation) for kind in records_inside(part)]
