"""`imp_ds recipes`: the list, a recipe as YAML, and a recipe as a Python file of one's own."""

import json
import os
import shlex
from pathlib import Path

import yaml
from pydantic import BaseModel

from imp_ds.config import RunConfig
from imp_ds.errors import UserError
from imp_ds.model_settings import DEFAULT
from imp_ds.recipes import RECIPES
from imp_ds.records import fields_of
from imp_ds.stages import StagedRun

_WIDTH = 110
_INDENT = "    "


def listed() -> str:
    """A line for each recipe: its name, steps and what its docstring says first."""
    width = max(map(len, RECIPES))
    return "\n".join(f"{name:{width}}  {_summary(name)}" for name in RECIPES)


def _summary(name: str) -> str:
    function = RECIPES[name]
    if hasattr(function, "func"):  # routers of one kind
        return f"the digits with {function.args[0]} routers, for compare-routers"
    return (function.__doc__ or "").strip().partition("\n")[0].partition("; see")[0].rstrip(".:")


def shown(run: RunConfig | StagedRun, *, full: bool = False) -> str:
    """A run, or several stages, as YAML: `full`, or only the fields that differ from their defaults."""
    values = run.model_dump(mode="json") if full else _plain(run)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=_WIDTH)


def copied(run: RunConfig | StagedRun, recipe: str, out: Path) -> None:
    """Write a Python file whose one function returns what is equal to `run`. Raises UserError for a file that is there."""
    if out.suffix != ".py":
        raise UserError("a recipe is copied to a Python file", got=out, allowed="a name that ends in .py")
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(source(run, recipe, out))
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise UserError("the file is there already", got=out, fix="name another, or remove it") from None
    except FileNotFoundError:
        fix = f"mkdir -p {shlex.quote(str(out.parent))}"
        raise UserError("the folder of the recipe is not there", got=out.parent, fix=fix) from None
    except OSError as error:
        raise UserError("the recipe cannot be written", got=f"{out}: {error.strerror}", fix="name another file") from None


def source(run: RunConfig | StagedRun, recipe: str, out: Path) -> str:
    """The text of such a file."""
    kinds: set[str] = set()
    body = _literal(run, 1, kinds)
    imports = f"from imp_ds import {', '.join(sorted(kinds))}\n"
    if len(imports) > _WIDTH:
        imports = "from imp_ds import (\n" + "".join(f"{_INDENT}{kind},\n" for kind in sorted(kinds)) + ")\n"
    head = f'"""A copy of the recipe {_in_docstring(recipe)}, to change."""\n\n{imports}\n\n'
    return f"{head}def recipe() -> {type(run).__name__}:\n{_INDENT}return {body}\n"


def _in_docstring(text: str) -> str:
    return "".join(c if c.isprintable() and c not in '"\\' else "?" for c in text)


def _changed(record: BaseModel) -> dict[str, object]:
    """The fields of a record that differ from their defaults; always `kind`, and a `family` other than the default one, which say
    which record it is, and `root`, which most want to change."""
    found = {}
    for name, field in fields_of(type(record)).items():
        value = getattr(record, name)
        always = name in ("kind", "root") or name == "family" and value != DEFAULT
        if always or field.default_factory or field.is_required() or value != field.default:
            found[name] = value
    return found


def _plain(value):
    if isinstance(value, BaseModel):
        return {name: _plain(inner) for name, inner in _changed(value).items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return {key: _plain(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def _literal(value, depth: int, kinds: set[str]) -> str:
    """Python for a value, in one line where it fits; `kinds` collects the records that it names."""
    if isinstance(value, BaseModel):
        kinds.add(type(value).__name__)
        own = {name: type(value).model_fields[name].default for name in ("kind", "family") if name in type(value).model_fields}
        fields = [(name, inner) for name, inner in _changed(value).items() if name not in own or inner != own[name]]
        parts = [f"{name}={_literal(inner, depth + 1, kinds)}" for name, inner in fields]
        return _joined(f"{type(value).__name__}(", parts, ")", depth)
    if isinstance(value, list):
        return _joined("[", [_literal(inner, depth + 1, kinds) for inner in value], "]", depth)
    if isinstance(value, tuple):
        parts = [_literal(inner, depth + 1, kinds) for inner in value]
        return "(" + ", ".join(parts) + ("," if len(parts) == 1 else "") + ")"
    if isinstance(value, dict):
        parts = [f"{_literal(key, 0, kinds)}: {_literal(inner, depth + 1, kinds)}" for key, inner in value.items()]
        return _joined("{", parts, "}", depth)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) and value.isprintable() else repr(value)


def _joined(start: str, parts: list[str], end: str, depth: int) -> str:
    line = start + ", ".join(parts) + end
    if len(line) + len(_INDENT) * depth <= _WIDTH and "\n" not in line:
        return line
    inner = "".join(f"{_INDENT * (depth + 1)}{part},\n" for part in parts)
    return f"{start}\n{inner}{_INDENT * depth}{end}"
