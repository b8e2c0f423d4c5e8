"""How to fix what Python reports of a recipe file: the name that was meant, where one is misspelt or not imported."""

import difflib
import re
import sys
import types

import imp_ds

_IMPORT = re.compile(r"cannot import name '(\w+)'")


def suggested_fix(error: BaseException, line: str | None) -> str | None:
    """What to do about an exception of the user's code; `line` of it is where it was raised."""
    name, known = _misspelt(error)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6) if name else []
    if isinstance(error, NameError) and name in known:
        return f"from imp_ds import {name}"
    if close:
        return f"did you mean {close[0]}? in: {line}"
    if isinstance(error, ModuleNotFoundError):
        return f"install {error.name}, or put it beside the recipe; needed by: {line}"
    if isinstance(error, ImportError) and known:
        return f"there are {', '.join(known)}; in: {line}"
    return f"correct that line: {line}" if line else None


def _misspelt(error: BaseException) -> tuple[str | None, list[str]]:
    """The name that was not found, and those that are there; (None, []) for another exception."""
    if isinstance(error, ModuleNotFoundError):
        return error.name, ["imp_ds"]
    if isinstance(error, ImportError) and (found := _IMPORT.search(str(error))):
        return found[1], _names_in(sys.modules.get(error.name))
    if isinstance(error, AttributeError) and isinstance(error.obj, types.ModuleType):
        return error.name, _names_in(error.obj)
    return (error.name, imp_ds.__all__) if isinstance(error, NameError) else (None, [])


def _names_in(module: types.ModuleType | None) -> list[str]:
    return list(getattr(module, "__all__", [name for name in dir(module) if not name.startswith("_")] if module else []))
