"""Files of JSON lines that a run adds to, each line with its step: what lies beyond the step a run goes on from is removed."""

import json
from pathlib import Path

from imp_ds.errors import UserError
from imp_ds.written_files import write_file


def cut_lines(path: Path, last_step: int) -> list[dict]:
    """The lines of a file up to `last_step`; what lies beyond is removed from it. Raises UserError when it is damaged.

    A last line without its end is what a killed process leaves, and is removed too.
    """
    if not path.exists():
        return []
    kept = []
    whole = path.read_text(encoding="utf-8").split("\n")[:-1]
    for number, line in enumerate(whole, start=1):
        try:
            entry = json.loads(line)
            if entry["step"] <= last_step:
                kept.append(entry)
        except (ValueError, KeyError, TypeError):
            where = f"{path}, line {number}"
            raise UserError(f"a line of {path.name} cannot be read", got=where, fix="delete the line") from None
    write_file(path, "".join(json.dumps(entry) + "\n" for entry in kept))
    return kept
