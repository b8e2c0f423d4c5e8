"""What all records of a run's configuration share: which keys and values none of them takes, whatever the field."""

import typing
from functools import cache

from pydantic import BaseModel, ConfigDict, model_validator

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
                _check(value, name in cls.model_fields and _takes_numbers(cls, name))
            except ValueError as error:
                raise ValueError(f"{name} is {error}") from None
        return data


@cache
def _takes_numbers(kind: type[BaseModel], field: str) -> bool:
    """Whether a field takes numbers and no truth values."""
    found = set(_parts(kind.model_fields[field].annotation))
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
