"""Where samples lie: a folder for each split with a metadata.jsonl and the media files that it names.

The layout is the one that `datasets` calls imagefolder, videofolder and audiofolder. A corpus may come from anybody,
so a row may name only files inside its own folder: no absolute path, no "..", no address, no link that leads out.
"""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from imp_ds.errors import UserError
from imp_ds.tasks import Source

METADATA = "metadata.jsonl"
MEDIA = ("vision", "audio")
_MAKE = "make the corpus with `python -m imp_ds corpus digits DIR` and name it with --set data.root=DIR"


class FolderSource:
    """The rows of `{root}/{source.path}/{split}`, read once and checked; media are opened only when a sample is decoded.

    Args:
        root: the folder `data.root`.
        source: the columns that hold the file names, captions and labels.
        split: "train", "validation" or "test".

    Raises UserError when the folder or its metadata is missing, has no rows, is not JSON lines, lacks a column, holds a
    value of the wrong kind, or names a file outside its folder; and when the first or last file is not there.
    """

    def __init__(self, root: str | Path, source: Source, split: str):
        self.source, self.split = source, split
        self.folder = Path(root) / source.path / split
        self.metadata = self.folder / METADATA
        _check_exists(Path(root), self.folder, self.metadata)
        self._real_folder = self.folder.resolve()
        self.roles = [role for role in ("vision", "audio", "text", "label") if getattr(source, role) is not None]
        self._columns = self._read()
        for role in self.roles:
            if role in MEDIA:
                self._check_ends(role)

    def __len__(self) -> int:
        return self._rows

    def row(self, index: int) -> dict:
        """What the metadata says of a row, by role: "vision", "audio": file name; "text": list of captions; "label": int."""
        return {role: self._columns[role][index] for role in self.roles}

    def path(self, index: int, role: str) -> Path:
        """The media file of a row. Raises UserError when it is missing or a link leads out of the folder."""
        name = self._columns[role][index]
        path = self.folder / name
        try:
            real = path.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise UserError(f"{self.metadata}: row {index + 1} names a file that is not there", got=name, fix=_MAKE) from error
        if not real.is_relative_to(self._real_folder):
            what = f"{self.metadata}: row {index + 1} names a link that leads out of the folder"
            raise UserError(what, got=f"{name} -> {real}")
        return path

    def labels(self) -> np.ndarray:
        """Class index of every row, int64 [rows]."""
        return self._columns["label"]

    def captions(self) -> Iterator[str]:
        """Every caption of every row; what a tokenizer is trained on."""
        for captions in self._columns["text"]:
            yield from captions

    def _read(self) -> dict:
        columns = {role: [] for role in self.roles}
        checks = {"vision": _file_name, "audio": _file_name, "text": _captions, "label": _label}
        with open(self.metadata, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                where = f"{self.metadata}, line {number}"
                row = _parse(line, where)
                for role in self.roles:
                    column = getattr(self.source, role)
                    if column not in row:
                        what = f"{where}: there is no column {column!r}"
                        raise UserError(what, allowed=", ".join(row), fix=f"set source.{role}")
                    columns[role].append(checks[role](row[column], f"{where}, column {column!r}"))
        if not self.roles:
            raise UserError(f"the source {self.source.path} names no column", allowed="vision, audio, text, label")
        self._rows = len(columns[self.roles[0]])
        if not self._rows:
            raise UserError(f"{self.metadata} has no rows", fix=_MAKE)
        if "label" in columns:
            columns["label"] = np.array(columns["label"], dtype=np.int64)
        return columns

    def _check_ends(self, role: str):
        """Open the first and the last file for one byte: a corpus that was moved or cut is refused before training starts."""
        for index in (0, self._rows - 1):
            path = self.path(index, role)
            try:
                with open(path, "rb") as file:
                    empty = not file.read(1)
            except OSError as error:
                raise UserError(f"cannot read {path}", got=error.strerror) from error
            if empty:
                raise UserError(f"{path} is empty", fix=_MAKE)


def _check_exists(root: Path, folder: Path, metadata: Path):
    if not root.is_dir():
        raise UserError(f"the data folder {root} does not exist", fix=_MAKE)
    if not folder.is_dir():
        nearest = folder.parent if folder.parent.is_dir() else root
        there = ", ".join(sorted(p.name for p in nearest.iterdir() if p.is_dir()))
        raise UserError(f"the data folder {folder} does not exist", allowed=f"in {nearest}: {there or 'nothing'}", fix=_MAKE)
    if not metadata.is_file():
        raise UserError(f"{folder} has no {METADATA}", fix=_MAKE)


def _parse(line: bytes, where: str) -> dict:
    start = line.strip()[:80].decode("utf-8", "replace")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or nested without end
        raise UserError(f"{where} is not JSON: {error}", got=start) from error
    if not isinstance(row, dict):
        raise UserError(f"{where} is not a JSON object", got=start, allowed='{"file_name": ..., ...}')
    return row


def _file_name(value, where: str) -> str:
    """A relative path inside the folder, on any system: hence no backslashes and no drive letters."""
    if not isinstance(value, str) or not value:
        raise UserError(f"{where} is not a file name", got=value)
    path = PurePosixPath(value)
    outside = path.is_absolute() or ".." in path.parts or PureWindowsPath(value).drive
    if outside or "://" in value or "\\" in value or "\0" in value:
        raise UserError(f"{where} names a file outside its folder", got=value, allowed="a path below the folder of the metadata")
    return value


def _captions(value, where: str) -> list[str]:
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, list) or not captions or not all(isinstance(c, str) and c.strip() for c in captions):
        raise UserError(f"{where} is neither a caption nor a list of captions", got=value)
    return captions


def _label(value, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise UserError(f"{where} is not a class index", got=value, allowed="0, 1, 2, ...")
    return value
