"""Files of JSON lines that a run adds to, each line with its step: what lies beyond the step a run goes on from is removed."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from imp_ds.errors import UserError
from imp_ds.json_files import parse_json
from imp_ds.train.recording.record_file import RecordFile
from imp_ds.written_files import write_file


class LineFile:
    """The file of JSON lines at `path`, for rank 0. A full disk delays lines (`RecordFile`)."""

    def __init__(self, path: Path):
        self._file = RecordFile(path)

    def add(self, entries: list[dict]) -> None:
        for entry in entries:
            self._file.add(json.dumps(entry).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def cut_lines(path: Path, last_step: int, read: Callable[[dict], object] = lambda entry: None) -> list[dict]:
    """The lines of a file up to `last_step`; what lies beyond is removed from it.

    A last line without its end is what a killed process leaves, and is removed too. Raises UserError when it is damaged: a line
    is no JSON object with an integer as its step, or `read` raises KeyError, TypeError, AttributeError or ValueError for it.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    kept, spans, end = [], [], 0
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            entry = parse_json(line, path.name, dict)
            if not isinstance(entry["step"], int):
                raise TypeError("the step is no integer")
            read(entry)
        except (ValueError, KeyError, TypeError, AttributeError):  # a UserError is a ValueError
            where = f"{path}, line {number}"
            raise UserError(f"a line of {path.name} cannot be read", got=where, fix="delete the line") from None
        if entry["step"] <= last_step:
            kept.append(entry)
            spans.append((end, end + len(line) + 1))
        end += len(line) + 1
    if spans == [] or spans[-1][1] == sum(stop - start for start, stop in spans):  # they come first: this needs no room
        if len(content) > (size := spans[-1][1] if spans else 0):
            os.truncate(path, size)
    else:
        write_file(path, b"".join(content[start:stop] for start, stop in spans))
    return kept
