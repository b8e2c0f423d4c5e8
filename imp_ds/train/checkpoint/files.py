"""Names in the checkpoint folder, and files that are on the disk when a function returns."""

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from imp_ds.json_files import read_json
from imp_ds.written_files import write_file

FORMAT = 4
FOLDER = "checkpoints"
INDEX, STATE, MANIFEST, LATEST = "index.json", "state.json", "manifest.json", "latest"
REFERENCES = "references.json"  # files beside the checkpoint that hold what is not trained: name -> path, size, sha256
FROZEN = "frozen"  # their folder, of those that the run wrote itself
STAGING, DELETED = ".staging-", ".deleted-"
REPLACED = ".replaced"  # ends the name of a complete one whose step is being saved again
CHUNK = 16 * 2**20  # bytes written and hashed at a time, without Python's lock

_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_STEP = re.compile(rf"step_(\d{{8,}})({re.escape(REPLACED)})?")


def folder_name(step: int) -> str:
    return f"step_{step:08d}"


def file_name(kind: str, rank: int) -> str:
    """The file of a rank's weights ("model"), moments ("optimizer") or random state ("random"), or of rank 0's "buffers"."""
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


def summary(folder: Path) -> tuple[dict, int]:
    """The state of a checkpoint, and how many parameters it holds; nothing else is read or verified. Raises UserError,
    KeyError or TypeError for damaged lists."""
    index = read_json(folder / INDEX, dict)
    trained = (entry["shape"] for name, entry in index.items() if "/" not in name)  # not moments, buffers
    return read_json(folder / STATE, dict), sum(math.prod(shape) for shape in trained)


def delete(folder: Path) -> None:
    """Remove a checkpoint; killed midway, nothing is left that looks like one."""
    away = folder.with_name(DELETED + folder.name)
    with contextlib.suppress(OSError):  # one that cannot be deleted takes room, and is no reason to fail a save
        folder.rename(away)
        shutil.rmtree(away, ignore_errors=True)


def remove_leftovers(root: Path) -> None:
    """Remove what killed saves left in a checkpoint folder."""
    for path in [*root.glob(STAGING + "*"), *root.glob(DELETED + "*")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: dict) -> dict:
    """Write JSON, complete or not at all; returns its entry for the manifest."""
    text = json.dumps(value, indent=1, sort_keys=True) + "\n"
    write_file(path, text)
    return {"size": len(text.encode()), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor], check: Callable[[], None] = lambda: None) -> dict:
    """Write tensors, contiguous ones in host memory, in their order, and flush the file.

    In the format of safetensors (length of the header, header in JSON, data), without a copy of the data, which its own
    writer would make. `check` is called between chunks and may raise. Returns the file's entry for the manifest.
    """
    header, end = {}, 0
    for key, value in tensors.items():
        header[key] = {"dtype": _DTYPES[value.dtype], "shape": list(value.shape), "data_offsets": [end, end + value.nbytes]}
        end += value.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the data
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        for chunk in (len(text).to_bytes(8, "little") + text, *_chunks(tensors)):
            written = 0
            while written < len(chunk):  # a disk that fills up takes a part of a chunk first
                written += file.write(memoryview(chunk)[written:])
            digest.update(chunk)
            check()
        os.fsync(file.fileno())
    return {"size": 8 + len(text) + end, "sha256": digest.hexdigest()}


def _chunks(tensors: dict[str, torch.Tensor]):
    for value in tensors.values():
        if value.numel():
            values = memoryview(value.reshape(-1).view(torch.uint8).numpy())
            for start in range(0, len(values), CHUNK):
                yield values[start : start + CHUNK]


def hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
