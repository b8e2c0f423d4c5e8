"""Recipes that are not of this package: a function in a Python file or a module, or a run or stages as JSON or YAML.

A Python file is executed, since the user named it; JSON and YAML are data, and nothing in them is ever run.
"""

import importlib
import inspect
import re
import sys
import traceback
import types
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ValidationError

from imp_ds.config import RunConfig
from imp_ds.errors import UserError
from imp_ds.overrides import explain, nearest
from imp_ds.recipes.suggested_fix import suggested_fix
from imp_ds.stages import StagedRun

ALLOWED = "a name of `imp_ds recipes`, FILE.py, FILE.py:FUNCTION, PACKAGE.MODULE:FUNCTION, or a run as .json, .yaml or .yml"
_KINDS = (RunConfig, StagedRun)  # what a recipe returns
_FILE = re.compile(r"(?P<path>.*\.py)(:(?P<name>[^:/]*))?", re.DOTALL)
_MODULE = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<name>\w*)")


def find_function(recipe: str) -> tuple[Callable[[], RunConfig | StagedRun], str] | None:
    """The function that "FILE.py", "FILE.py:FUNCTION" or "PACKAGE.MODULE:FUNCTION" names, and the file that it comes from.

    None where `recipe` is of no such form. Raises UserError where it names nothing that can be a recipe.
    """
    if file := _FILE.fullmatch(recipe):
        module = _run_file(Path(file["path"]))
        names = file["name"]
    elif named := _MODULE.fullmatch(recipe):
        module = import_users(named["module"])
        names = named["name"]
    else:
        return None
    origin = module.__file__ or module.__name__
    return (_named(module, names, origin) if names else _only(module, origin)), origin


def call(function: Callable[[], RunConfig | StagedRun], origin: str) -> RunConfig | StagedRun:
    """What a recipe returns. Raises UserError, with the line in `origin`, for an exception or another type."""
    name = getattr(function, "__name__", repr(function))
    required = [p.name for p in _parameters(function) if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if required:
        raise UserError(
            f"{_place(function, origin)}: the recipe {name} cannot be called without arguments", got=", ".join(required),
            fix="give each argument a default",
        )  # fmt: skip
    run = _guarded(function, origin)
    if not isinstance(run, _KINDS):
        raise UserError(
            f"{_place(function, origin)}: the recipe {name} does not return a RunConfig", got=type(run).__name__,
            allowed="RunConfig, or StagedRun of several stages",
            fix=f"end {name} with `return RunConfig(...)`; it is imported by `from imp_ds import RunConfig`",
        )  # fmt: skip
    try:  # what a recipe has changed since its records were made is checked here
        return type(run).model_validate(run.model_dump(warnings=False))
    except ValidationError as error:
        raise _explained(type(run), error, _place(function, origin)) from None


def _run_file(path: Path) -> types.ModuleType:
    try:
        source = path.read_bytes()
    except OSError as error:
        raise UserError(
            "the recipe cannot be read", got=f"{path}: {error.strerror}", allowed=ALLOWED,
            fix=f"relative paths are meant from {Path.cwd()}",
        ) from None  # fmt: skip
    path = path.resolve()
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # for what lies beside the recipe; behind all else, so that it shadows nothing
    module = types.ModuleType(f"recipe_{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    try:
        code = compile(source, str(path), "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        message = error.msg if isinstance(error, SyntaxError) else error
        raise UserError(f"{path}{line}: this is not Python", got=message, fix="correct that line") from None
    _guarded(lambda: exec(code, module.__dict__), str(path))
    return module


def import_users(name: str, what: str = "the module of the recipe") -> types.ModuleType:
    """A module of the user, installed or below this folder. Raises UserError where it is not found or fails."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _failed(error, name) from None
        raise UserError(
            f"{what} is not found", got=error.name, allowed="a module that is installed or below this folder",
            fix=f"looked in {Path.cwd()} and what PYTHONPATH names",
        ) from None  # fmt: skip
    except (Exception, SystemExit) as error:
        raise _failed(error, name) from None


def _only(module: types.ModuleType, origin: str) -> Callable:
    """The recipe of a file: its only function that is annotated to return a StagedRun, whose parts others may return, or else a
    RunConfig, or else its only one without arguments."""
    own = [f for f in vars(module).values() if inspect.isfunction(f) and f.__module__ == module.__name__]
    public = [f for f in own if not f.__name__.startswith("_")]
    returning = lambda kind: [f for f in public if f.__annotations__.get("return") in (kind, kind.__name__)]  # noqa: E731
    found = returning(StagedRun) or returning(RunConfig)
    found = found or [f for f in public if not any(p.default is p.empty for p in _parameters(f))]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(
            f"{origin} holds no recipe", got=", ".join(f.__name__ for f in own) or "no function",
            allowed="a function without arguments that returns a RunConfig",
            fix="def my_recipe() -> RunConfig: ...; `imp_ds recipes copy digits FILE.py` writes one to begin with",
        )  # fmt: skip
    lines = ", ".join(f"{f.__name__} (line {f.__code__.co_firstlineno})" for f in found)
    fix = f"{origin}:{found[0].__name__}, or `-> RunConfig` behind one of them alone"
    raise UserError(f"{origin} holds several functions that may be the recipe", got=lines, allowed="one, or its name", fix=fix)


def _named(module: types.ModuleType, name: str, origin: str) -> Callable:
    function = getattr(module, name, None)
    if function is None:
        names = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise UserError(f"{origin} has no function of that name", got=name, allowed=nearest(name, names) or "none is there")
    if not callable(function) or isinstance(function, _KINDS):
        fix = f"def {name}() -> RunConfig: ..."
        raise UserError(f"{origin}: {name} is no function", got=type(function).__name__, allowed="a function", fix=fix)
    return function


def _parameters(function: Callable) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a callable without a signature
        return []


def _place(function: Callable, origin: str) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return origin if code is None else f"{code.co_filename}, line {code.co_firstlineno}"


def _guarded(function: Callable, origin: str):
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise _failed(error, origin) from None


def _failed(error: BaseException, origin: str) -> UserError:
    """An exception of the user's code, with the last line of it that is in the file `origin`, or else outside of libraries."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename == origin] or [f for f in frames if _is_users(f.filename)]
    where = f"{own[-1].filename}, line {own[-1].lineno}" if own else origin
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{error.filename}, line {error.lineno}"
    if isinstance(error, ValidationError):
        return _explained(_record(error.title), error, where)
    if isinstance(error, UserError):
        return UserError(f"{where}: {error}")
    what = f"{where}: the recipe failed"
    message = "".join(traceback.format_exception_only(error)).strip()
    return UserError(what, got=message, fix=suggested_fix(error, own[-1].line if own else None))


def _explained(kind: type[BaseModel], error: ValidationError, where: str) -> UserError:
    found = explain(kind, error, where)
    return found if where in str(found) else UserError(f"{where}: {found}")


def _is_users(path: str) -> bool:
    return not path.startswith("<") and "site-packages" not in path and Path(__file__).parents[1] not in Path(path).parents


def _record(name: str) -> type[BaseModel]:
    """The record class of that name, for the fields that a message suggests."""
    kinds = [RunConfig, StagedRun]
    for kind in kinds:  # grows while it is read
        if kind.__name__ == name:
            return kind
        kinds += [k for base in kind.__mro__ if issubclass(base, BaseModel) for k in base.__subclasses__() if k not in kinds]
    return RunConfig
