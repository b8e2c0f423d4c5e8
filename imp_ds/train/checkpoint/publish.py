"""Rank 0's part of a save: wait for every rank's files, list them, and give the folder its name.

The order is what makes a checkpoint complete or absent: files and manifest are on the disk before the folder is renamed,
`latest` is moved after that, and only then older checkpoints go.
"""

import time
from collections.abc import Callable
from math import prod
from pathlib import Path

from imp_ds.errors import UserError
from imp_ds.json_files import read_json
from imp_ds.train.checkpoint import files
from imp_ds.train.checkpoint.frozen import Frozen, remove_unreferred
from imp_ds.written_files import write_file

POLL_S = 0.02


def publish(staging: Path, step: int, state: dict, world: int, frozen: Frozen, check: Callable[[], None]) -> Path:
    """Make the checkpoint of `step` out of what `world` ranks write into `staging`, and what is not trained; returns its folder.

    `check` is called while it waits and before it renames, and may raise to give up. Raises UserError when a rank failed,
    and OSError.
    """
    parts = [_await_part(staging, rank, check) for rank in range(world)]
    listed, index = {}, dict(frozen.index)
    for part in parts:
        listed |= part["files"]
        for key, (shape, start, stop, file) in part["tensors"].items():
            index.setdefault(key, {"shape": shape, "parts": []})["parts"].append([start, stop, file])
    for key, entry in index.items():
        entry["parts"].sort()
        assert _covers(entry), f"no rank wrote a part of {key}"
    written = {files.INDEX: index, files.STATE: {"format": files.FORMAT, **state}, files.REFERENCES: frozen.references}
    for name, value in written.items():
        listed[name] = files.write_json(staging / name, value)
    files.write_json(staging / files.MANIFEST, listed)
    for rank in range(world):
        files.part_path(staging, rank).unlink()
    files.flush(staging)
    check()
    return _name(staging, staging.parent / files.folder_name(step))


def _await_part(staging: Path, rank: int, check: Callable[[], None]) -> dict:
    part, failure = files.part_path(staging, rank), files.failure_path(staging, rank)
    while not part.exists():
        if failure.exists():
            raise UserError(f"rank {rank} could not write its part: {failure.read_text().strip() or 'no reason known'}")
        check()
        time.sleep(POLL_S)
    return read_json(part, dict)


def _covers(entry: dict) -> bool:
    end = 0
    for start, stop, _ in entry["parts"]:
        if start > end:
            return False
        end = max(end, stop)
    return end == prod(entry["shape"])


def _name(staging: Path, final: Path) -> Path:
    root, replaced = final.parent, final.with_name(final.name + files.REPLACED)
    if final.exists():  # the step was saved before: until the new one has the name, the old one can still be found
        files.delete(replaced)
        final.rename(replaced)
    staging.rename(final)
    files.flush(root)
    write_file(root / files.LATEST, final.name + "\n")
    files.flush(root)
    if replaced.exists():
        files.delete(replaced)
    return final


def prune(final: Path, keep: int, milestone_every: int, best: int | None = None) -> None:
    """Delete checkpoints older than the newest `keep` up to `final`; those of multiples of `milestone_every` stay (0: none), and
    that of step `best`."""
    older = [path for path in files.published(final.parent) if files.step_of(path) < files.step_of(final)]
    for path in older[: max(0, len(older) - (keep - 1))]:
        if files.step_of(path) != best and (not milestone_every or files.step_of(path) % milestone_every):
            files.delete(path)
    remove_unreferred(final.parent)
