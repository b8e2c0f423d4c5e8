"""Names in the checkpoint folder, and files that are on the disk when a function returns."""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from imp_ds.written_files import write_file

FORMAT = 3
FOLDER = "checkpoints"
INDEX, STATE, MANIFEST, LATEST = "index.json", "state.json", "manifest.json", "latest"
STAGING, DELETED = ".staging-", ".deleted-"
REPLACED = ".replaced"  # ends the name of a whole one whose step is being saved again
CHUNK = 16 * 2**20  # bytes written and hashed at a time, without Python's lock

_STEP = re.compile(rf"step_(\d{{8,}})({re.escape(REPLACED)})?")


def folder_name(step: int) -> str:
    return f"step_{step:08d}"


def file_name(kind: str, rank: int) -> str:
    """The file of a rank's weights ("model") or moments ("optimizer")."""
    return f"{kind}-{rank:05d}.safetensors"


def part_path(staging: Path, rank: int) -> Path:
    """What a rank writes last: the sizes, hashes and ranges of its files."""
    return staging / f"part-{rank:05d}.json"


def failure_path(staging: Path, rank: int) -> Path:
    """What a rank writes instead when it cannot write its part: why."""
    return staging / f"part-{rank:05d}.failed"


def step_of(folder: Path) -> int:
    return int(_STEP.fullmatch(folder.name)[1])


def published(root: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first; damaged ones too."""
    found = [path for path in Path(root).glob("step_*") if _STEP.fullmatch(path.name)]
    return sorted(found, key=lambda path: (step_of(path), not path.name.endswith(REPLACED)))


def steps(output_dir: Path) -> list[int]:
    """The steps of which a run has a checkpoint, damaged ones too, in order."""
    return sorted({step_of(path) for path in published(Path(output_dir) / FOLDER)})


def delete(folder: Path) -> None:
    """Remove a checkpoint; killed midway, nothing is left that looks like one."""
    away = folder.with_name(DELETED + folder.name)
    with contextlib.suppress(OSError):  # one that cannot be deleted takes room, and is no reason to fail a save
        folder.rename(away)
        shutil.rmtree(away, ignore_errors=True)


def remove_leftovers(root: Path) -> None:
    """Remove what killed saves left in a checkpoint folder."""
    for path in [*root.glob(STAGING + "*"), *root.glob(DELETED + "*")]:
        shutil.rmtree(path, ignore_errors=True)


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: dict) -> dict:
    """Write JSON, whole or not at all; returns its entry for the manifest."""
    text = json.dumps(value, indent=1, sort_keys=True) + "\n"
    write_file(path, text)
    return {"size": len(text.encode()), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def write_safetensors(path: Path, numels: dict[str, int], values: memoryview, check: Callable[[], None]) -> dict:
    """Write flat float32 tensors, which lie one after another in `values` (bytes), and flush the file.

    In the format of safetensors (length of the header, header in JSON, data), without a copy of the data, which its own
    writer would make. `check` is called between chunks and may raise. Returns the file's entry for the manifest.
    """
    header, end = {}, 0
    for key, numel in numels.items():
        header[key] = {"dtype": "F32", "shape": [numel], "data_offsets": [end, end + 4 * numel]}
        end += 4 * numel
    assert end == len(values)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the data
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        for chunk in (len(text).to_bytes(8, "little") + text, *_chunks(values)):
            written = 0
            while written < len(chunk):  # a disk that fills up takes a part of a chunk first
                written += file.write(memoryview(chunk)[written:])
            digest.update(chunk)
            check()
        os.fsync(file.fileno())
    return {"size": 8 + len(text) + end, "sha256": digest.hexdigest()}


def _chunks(values: memoryview):
    for start in range(0, len(values), CHUNK):
        yield values[start : start + CHUNK]
