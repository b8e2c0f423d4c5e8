"""From text to records: `a.b=c` overrides, unknown keys with a suggestion, and pydantic's errors as one UserError."""

import difflib
import typing
from collections.abc import Iterable

from pydantic import BaseModel, TypeAdapter, ValidationError

from imp_ds.errors import UserError
from imp_ds.records import OpenRecord, Record, fields_of, records_inside

IMPORT = "correct the name, or import the module that registers it: in the recipe, or by --import MODULE"


def nearest(name: str, names: Iterable[str]) -> str:
    """The values that would have done, as text: the closest ones first as a question, then all."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=2, cutoff=0.6)
    return (f"did you mean {' or '.join(close)}? all: " if close else "") + ", ".join(names)


def parse_record(kind: type[BaseModel], data: object, origin: str) -> BaseModel:
    """`data` as a record of that kind; the first thing wrong with it is raised as a UserError that names its path."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise explain(kind, error, origin) from None


def shown_error(error: ValidationError) -> dict:
    """The one of pydantic's errors that is shown: an unknown key before what may be missing for it, else the first."""
    found = error.errors()
    return next((entry for entry in found if entry["type"] == "extra_forbidden"), found[0])


def explain(kind: type[BaseModel], error: ValidationError, origin: str) -> UserError:
    """The `shown_error` of pydantic about a `kind` that came from `origin`, as a UserError."""
    first = shown_error(error)
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, UserError):
        return cause
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        owner = _record_at(kind, first["loc"][:-1])
        names = [] if owner is None else list(fields_of(owner))
        fix = IMPORT if owner is not None and issubclass(owner, OpenRecord) else None
        allowed = nearest(str(first["loc"][-1]), names)
        return UserError(f"unknown key in {origin}: {path}", got=first["loc"][-1], allowed=allowed, fix=fix)
    message = first["msg"].removeprefix("Value error, ")
    if not path or first["type"] == "value_error":
        return UserError(message, got=origin)
    got = "nothing" if first["type"] == "missing" else repr(first["input"])
    return UserError(f"wrong value in {origin}: {path}", got=got, allowed=message)


def apply_overrides(record: BaseModel, overrides: Iterable[str]) -> BaseModel:
    """A copy of `record` with each "path.to.field=value" set.

    A list of records is addressed by the `name` of an entry or by its index from 0; a value is JSON or a plain string,
    whichever the type of the field takes. Raises UserError for a path or a value that does not fit.
    """
    for override in overrides:
        path, equals, value = override.partition("=")
        if not equals or not path.strip():
            raise UserError(
                "an override is not of the form path=value", got=override, fix="write for example --set train.steps=100"
            )
        record = _with_value(record, path.strip(), value)
    return record


def _with_value(record: BaseModel, path: str, value: str) -> BaseModel:
    data = record.model_dump()
    node, place, keys = record, data, path.split(".")
    for depth, key in enumerate(keys):
        last, so_far = depth == len(keys) - 1, ".".join(keys[: depth + 1])
        if isinstance(node, list):
            key, annotation = _index(node, key, so_far), type(node[0])
            inner = node[key]
        else:
            annotation, inner = _field(node, key, so_far)
        if last:
            place[key] = _parse(annotation, value, so_far)
        elif isinstance(inner, (BaseModel, list)) and inner != []:
            node, place = inner, place[key]
        elif isinstance(node, Record) and (free := node.kind_of(key)) is not None:
            node, place = free, place[key]
        else:
            node = _optional_record(annotation, so_far, keys[depth + 1])
            if place.get(key) is None:
                place[key] = {}
            place = place[key]
    return parse_record(type(record), data, f"--set {path}={value}")


def _index(entries: list, key: str, path: str) -> int:
    """The place of an entry, by its name or its number."""
    names = [getattr(entry, "name", str(i)) for i, entry in enumerate(entries)]
    if key in names:
        return names.index(key)
    if key.isdigit() and int(key) < len(entries):
        return int(key)
    raise UserError(f"unknown key in --set: {path}", got=key, allowed=nearest(key, names))


def _field(node, key: str, path: str) -> tuple[object, object]:
    """The annotation (with its constraints) and the present value of a field of `node`, a record or the class of one."""
    kind = node if isinstance(node, type) else type(node)
    fields = fields_of(kind) if issubclass(kind, BaseModel) else {}
    if key not in fields:
        raise UserError(
            f"unknown key in --set: {path}",
            got=key,
            allowed=nearest(key, fields),
            fix="correct the key; `imp_ds recipes fields` lists all of them",
        )
    annotation = typing.Annotated[fields[key].annotation, fields[key]]
    return annotation, None if isinstance(node, type) else getattr(node, key)


def _optional_record(annotation, path: str, next_key: str) -> type[BaseModel]:
    """The record class of a field that holds nothing yet, so that its keys can be set one by one."""
    kinds = records_inside(annotation)
    if len(kinds) != 1:
        raise UserError(
            f"unknown key in --set: {path}.{next_key}", got=next_key, allowed=f"nothing below {path}: set {path} itself"
        )
    return kinds[0]


def _parse(annotation, text: str, path: str):
    """`text` as JSON, or else as a plain string, of the annotated type; strictly, so that true is no number."""
    adapter = TypeAdapter(annotation)
    try:
        return _plain(adapter.validate_json(text, strict=True))
    except ValidationError:
        try:
            return _plain(adapter.validate_python(text, strict=True))
        except ValidationError as error:
            cause = error.errors()[0].get("ctx", {}).get("error")
            fix = f"--set {path}=VALUE"
            refused = UserError(f"wrong value for {path}", got=repr(text), allowed=_expected(adapter), fix=fix)
            raise cause if isinstance(cause, UserError) else refused from None


def _plain(value):
    """Records as dictionaries, as the dump around them has it."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.model_dump() if isinstance(value, BaseModel) else value


def _expected(adapter: TypeAdapter) -> str:
    """What a field takes, in words: its JSON types with their limits, or its choices."""
    schema = adapter.json_schema()
    return " or ".join(_in_words(part) for part in schema.get("anyOf", [schema]))


def _in_words(schema: dict) -> str:
    if "enum" in schema or "const" in schema:
        return " or ".join(map(str, schema.get("enum", [schema.get("const")])))
    words = schema.get("type", "object")
    if words == "array" and "minItems" in schema:
        words += f" of {schema['minItems']}" + ("" if schema.get("maxItems") == schema["minItems"] else " or more")
    if "prefixItems" in schema:
        words += f", each {_in_words(schema['prefixItems'][0])}"
    limits = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
        "maxLength": "characters at most",
        "pattern": "like",
    }
    return ", ".join([words, *(f"{text} {schema[key]}" for key, text in limits.items() if key in schema)])


def _record_at(kind: type[BaseModel], loc: tuple) -> type[BaseModel] | None:
    """The record class at a path of pydantic's, which has field names, list indices and the tags of unions."""
    kinds = [kind]
    for part in loc:
        if isinstance(part, int):
            continue
        owners = [k for k in kinds if part in fields_of(k)]
        if owners:
            kinds = records_inside(fields_of(owners[0])[part].annotation)
        else:  # the tag of a union: the classes whose `kind` it is
            kinds = [k for k in kinds if "kind" in k.model_fields and k.model_fields["kind"].default == part]
    return kinds[0] if kinds else None
