"""JSON files that somebody else may have written, cut off or damaged: read into what was meant, or refused in one message."""

import json
from pathlib import Path

from imp_ds.errors import UserError


def parse_json(content: str | bytes, origin: object, kind: type | tuple[type, ...] = object, fix: str | None = None):
    """The value of a JSON text. `kind`: of which types it may be.

    Raises UserError, which names `origin`, for text that is not UTF-8, not JSON, nested too deeply, or of another type.
    """
    try:
        value = json.loads(content.decode("utf-8-sig") if isinstance(content, bytes) else content)
    except RecursionError:
        raise UserError(f"{origin} is not usable JSON", got="values nested too deeply", fix=fix) from None
    except ValueError as error:  # not UTF-8, not JSON, a number with too many digits
        raise UserError(f"{origin} is not JSON", got=str(error), fix=fix) from None
    if not isinstance(value, kind):
        allowed = " or ".join(_NAMES.get(one, one.__name__) for one in (kind if isinstance(kind, tuple) else (kind,)))
        got = _NAMES.get(type(value), type(value).__name__)
        raise UserError(f"{origin} holds something else than it should", got=got, allowed=allowed, fix=fix)
    return value


def read_json(path: str | Path, kind: type | tuple[type, ...] = object, fix: str | None = None):
    """The value in a JSON file, as `parse_json` gives it. Raises UserError, also for a file that cannot be read."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read", got=error.strerror or error, fix=fix) from None
    return parse_json(content, path, kind, fix)


_NAMES = {dict: "an object {...}", list: "a list [...]", str: "a text", int: "a number", float: "a number", type(None): "null"}
