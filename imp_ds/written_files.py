"""Files that are replaced as a whole: at any moment, and after any crash, the old content is there or the new one."""

import json
import os
from pathlib import Path

from imp_ds.errors import UserError


def write_file(path: str | Path, content: str | bytes) -> Path:
    """Write `content` beside `path`, bring it to the disk, and give it that name; returns the path.

    Raises OSError, for example for want of room; `path` is then as it was, and nothing is left beside it.
    """
    path = Path(path)
    staged = staged_path(path)
    try:
        with staged.open("wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    return path


def staged_path(path: Path) -> Path:
    """Where `write_file` writes what is to be at `path`."""
    return path.with_name(f".{path.name}.partial")


def write_json(path: str | Path, value) -> Path:
    """The same with `value` as indented JSON."""
    return write_file(path, json.dumps(value, indent=2) + "\n")


def write_result(path: str | Path, content: str | bytes) -> Path:
    """`write_file` for what a command was asked for: raises UserError, with the reason, where it cannot be written."""
    try:
        return write_file(path, content)
    except OSError as error:
        raise UserError(
            "the result cannot be written", got=f"{path}: {error.strerror or error}", fix="name a file in a folder with room"
        ) from None


def wrote_folder(folder: str | Path, use: str) -> str:
    """The line about what a command wrote: the folder, how much is in it, and what it is for."""
    sizes = [path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()]
    return f"wrote {folder}: {len(sizes)} files, {sum(sizes) / 1e6:.1f} MB, for {use}"
