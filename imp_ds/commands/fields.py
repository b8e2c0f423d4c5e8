"""`imp_ds recipes fields`: the page of all fields of all records of a run, made from the records."""

import types
import typing

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from imp_ds.config import RunConfig
from imp_ds.records import fields_of, records_inside
from imp_ds.stages import Stage, StagedRun

_HEAD = """# What a recipe may set

Made from the records by `imp_ds recipes fields`; a test holds it to them. A recipe file takes every record from `imp_ds`
(`from imp_ds import RunConfig, Task, ...`); a YAML or JSON recipe has the same fields, and `kind` says which objective is meant.
`--set PATH=VALUE` changes one: `--set train.steps=100`, `--set tasks.NAME.batch_size=64`. An unknown key is refused.
"""
_LIMITS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥", "max_length": "length ≤", "pattern": "like"}


def records() -> list[type[BaseModel]]:
    """Every record class that a recipe may hold, RunConfig first, then as they are met, StagedRun last."""
    found: list[type[BaseModel]] = [RunConfig]
    for kind in found:  # grows while it is read
        for field in fields_of(kind).values():
            found += [inner for inner in records_inside(field.annotation) if inner not in found]
    return [*found, StagedRun, Stage]


def page() -> str:
    """The page as Markdown."""
    return "\n".join([_HEAD, *(_section(kind) for kind in records())])


def _section(kind: type[BaseModel]) -> str:
    summary = " ".join((kind.__doc__ or "").strip().partition("\n\n")[0].split())
    rows = [_row(name, field) for name, field in fields_of(kind).items()]
    table = ["| field | type | default | limits | what |", "| --- | --- | --- | --- | --- |", *rows]
    return "\n".join([f"## {kind.__name__}", "", summary, "", *table, ""])


def _row(name: str, field: FieldInfo) -> str:
    default = "required" if field.is_required() else _code(_default(field))
    cells = [_code(name), _code(_type(field.annotation)), default, _limits(field), field.description or ""]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "from the other fields"
    value = field.default
    return f"{type(value).__name__}()" if isinstance(value, BaseModel) else repr(value)


def _limits(field: FieldInfo) -> str:
    found = []
    for entry in field.metadata:
        for key, sign in _LIMITS.items():
            if (value := getattr(entry, key, None)) is not None:
                found.append(f"{sign} {_code(value)}" if key == "pattern" else f"{sign} {value}")
    return ", ".join(found)


def _code(value: object) -> str:
    return f"`{value}`" if str(value) else ""


def _type(annotation) -> str:
    """An annotation in words: `int or None`, `"a" or "b"`, `list of Task`."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return "None"
    if origin is typing.Annotated:
        return _type(parts[0])
    if origin is typing.Literal:
        return " or ".join(f'"{part}"' if isinstance(part, str) else str(part) for part in parts)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(part) for part in parts)
    if origin is list:
        inner = _type(parts[0])
        return f"list of ({inner})" if " or " in inner else f"list of {inner}"
    if origin is tuple:
        return "(" + ", ".join(_type(part) for part in parts) + ")"
    if origin is dict:
        return f"{{{_type(parts[0])}: {_type(parts[1])}}}"
    kinds = records_inside(annotation) or [annotation]
    return " or ".join(kind.__name__ for kind in kinds)
