"""What a run does not train: checkpoints refer to it, by path and sha256, and none of them writes it again.

Weights that were loaded from files stay there. All others, such as initial values, are written once, when the run starts, into
`checkpoints/frozen/`, each file under its own hash; it stays as long as a checkpoint refers to it.
"""

from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import nn

from imp_ds.errors import UserError
from imp_ds.json_files import read_json
from imp_ds.parallel.groups import on_main, rank, world_size
from imp_ds.train.checkpoint import files
from imp_ds.train.engine.master_state import full_parameters

_NAME = 16  # characters of a hash that make the name of a reference

Sources = dict[str, tuple[Path, str]]  # parameter -> the safetensors file that it was loaded from, and its key there


@dataclass(frozen=True)
class Frozen:
    """`index`: as in a checkpoint's index, of the frozen parameters alone: name -> shape, parts, and the key in the file where it
    is another one. `references`: name of a file in those parts -> its path, size and sha256."""

    index: dict[str, dict] = field(default_factory=dict)
    references: dict[str, dict] = field(default_factory=dict)


def refer_to_frozen(model: nn.Module, output_dir: Path, ep_size: int = 1, sources: Sources | None = None, reader=None) -> Frozen:
    """Where the values of the model's frozen parameters lie; what lies nowhere yet is written. All ranks call it, before
    DeepSpeed has the model.

    Args:
        output_dir: the run's folder.
        ep_size: over how many ranks experts are spread.
        sources: what was loaded from files, and has not been changed since.
        reader: the checkpoint that the model's weights are of, if so.

    Raises UserError, on every rank, when a source cannot be read or there is no room.
    """
    full_shapes = full_parameters(model)
    frozen = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    found = Frozen()
    if reader is not None:
        _keep(found, frozen, reader)
    loaded = {name: place for name, place in (sources or {}).items() if name in frozen and name not in found.index}
    names = on_main(lambda: _hash_sources(found, loaded), "the weights that the run starts from cannot be read")
    shared = [(names, found.references)]
    if world_size() > 1:
        dist.broadcast_object_list(shared, src=0)
    names, references = shared[0]
    found.references.update(references)
    for name, (path, key) in loaded.items():
        shape = full_shapes[name][0]
        found.index[name] = {"shape": shape, "parts": [[0, prod(shape), names[str(path)]]], "key": key}
    left = {name: value for name, value in frozen.items() if name not in found.index}
    if left:
        _write_once(found, left, full_shapes, Path(output_dir) / files.FOLDER, ep_size)
    return found


def _keep(found: Frozen, frozen: dict[str, torch.Tensor], reader) -> None:
    """What the checkpoint refers to already."""
    for name in frozen:
        entry = reader.index[name]
        used = {file for _, _, file in entry["parts"]}
        if used <= reader.references.keys():
            found.index[name] = entry
            found.references.update({file: reader.references[file] for file in used})


def _hash_sources(found: Frozen, loaded: Sources) -> dict[str, str]:
    """Path of each source -> its name among the references, which it joins."""
    names = {}
    for path in dict.fromkeys(path for path, _ in loaded.values()):
        path = Path(path).resolve()
        names[str(path)] = _join(found, str(path), path.stat().st_size, files.hash_of(path))
    return {str(path): names[str(Path(path).resolve())] for path, _ in loaded.values()}


def _join(found: Frozen, path: str, size: int, sha256: str) -> str:
    name = f"{sha256[:_NAME]}.safetensors"
    found.references[name] = {"path": path, "size": size, "sha256": sha256}
    return name


def _write_once(found: Frozen, left: dict[str, torch.Tensor], full_shapes: dict, root: Path, ep_size: int) -> None:
    """The ranks of the first expert group write what they hold: rank 0 all, the others their experts."""

    def held() -> dict[str, torch.Tensor]:
        return {name: value for name, value in left.items() if rank() == 0 or value.numel() < prod(full_shapes[name][0])}

    mine = held() if rank() < ep_size else {}
    problem = "what is not trained cannot be written"
    part = on_main(lambda: _write(mine, full_shapes, root) if mine else None, problem, every_rank=True)
    parts = [part] * world_size()
    if world_size() > 1:
        dist.all_gather_object(parts, part)
    for size, sha256, ranges in filter(None, parts):
        file = _join(found, f"{files.FROZEN}/{sha256}.safetensors", size, sha256)
        for name, (start, stop) in ranges.items():
            found.index.setdefault(name, {"shape": full_shapes[name][0], "parts": []})["parts"].append([start, stop, file])


def _write(mine: dict[str, torch.Tensor], full_shapes: dict, root: Path) -> tuple[int, str, dict[str, tuple[int, int]]]:
    """Size and hash of the file, and which elements of each parameter are in it."""
    (root / files.FROZEN).mkdir(parents=True, exist_ok=True)
    staging = root / f"{files.STAGING}frozen-{uuid4().hex[:8]}"
    tensors = {name: value.contiguous().view(-1) for name, value in mine.items()}
    try:
        written = files.write_safetensors(staging, tensors)
        staging.rename(root / files.FROZEN / f"{written['sha256']}.safetensors")
        files.flush(root / files.FROZEN)
    finally:
        staging.unlink(missing_ok=True)
    ranges = {name: (full_shapes[name][1], full_shapes[name][1] + value.numel()) for name, value in mine.items()}
    return written["size"], written["sha256"], ranges


def remove_unreferred(root: Path) -> None:
    """Delete what the run wrote for checkpoints that are no more. Nothing, where a checkpoint does not give what it refers to."""
    used = set()
    try:
        for folder in files.published(root):
            used |= {entry["path"] for entry in read_json(folder / files.REFERENCES, dict).values()}
    except (UserError, OSError, KeyError, TypeError):
        return
    for path in (root / files.FROZEN).glob("*.safetensors"):
        if f"{files.FROZEN}/{path.name}" not in used:
            path.unlink(missing_ok=True)
