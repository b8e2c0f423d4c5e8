"""Checkpoints that are whole or not there, and that do not know how many ranks wrote them.

    checkpoints/step_00001000/   model-*.safetensors, optimizer-*.safetensors, index.json, state.json, manifest.json
    checkpoints/latest           the name of the newest whole one

Files are written into a staging folder, flushed to disk, listed in a manifest with size and hash, and the folder is renamed
only when all ranks have finished; `latest` is moved last. Weights and moments are float32 safetensors by parameter name, an
expert's by name and number: DeepSpeed's own format is a pickle, is published before all ranks have written, and wants three
matrices in an expert. Reading needs no DeepSpeed.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from imp_ds.errors import UserError
from imp_ds.moe.experts import Experts
from imp_ds.parallel.groups import barrier, on_main, rank
from imp_ds.train import master_state

FORMAT = 1
FOLDER = "checkpoints"


def folder_name(step: int) -> str:
    return f"step_{step:08d}"


def expert_offsets(model: nn.Module) -> dict[str, int]:
    """Parameter name -> number of the first expert it holds here, for the stacked weights of experts."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, Experts):
            found |= {f"{path}.{name}": module.first for name, _ in module.named_parameters(recurse=False)}
    return found


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def save(engine, output_dir: Path, step: int, state: dict, keep: int) -> Path:
    """Save the engine's weights and optimizer, and `state`, as of `step` steps done; all ranks call it.

    Keeps the newest `keep` checkpoints. Raises UserError on every rank when one of them cannot write; what was saved before
    is untouched then.
    """
    root = Path(output_dir) / FOLDER
    staging, final = root / f".staging-{folder_name(step)}", root / folder_name(step)
    on_main(lambda: _fresh(staging), "the checkpoint folder could not be made")
    offsets = expert_offsets(engine.model)
    tensors = {"model": {}, "optimizer": {}}
    writes_experts = rank() < engine.ep_size  # the first expert group; the others are its replicas
    for name, parameter in engine.model.named_parameters():
        full = master_state.read(engine, parameter)
        if name in offsets and writes_experts:
            for i in range(full["weight"].shape[0]):
                _place(tensors, f"{name}.{offsets[name] + i}", {key: value[i].contiguous() for key, value in full.items()})
        elif name not in offsets and rank() == 0:
            _place(tensors, name, full)

    def write():
        for kind, part in tensors.items():
            if part:
                path = staging / f"{kind}-{rank():05d}.safetensors"
                save_file(part, path)
                _flush(path)

    on_main(write, "a rank could not write its part of the checkpoint", every_rank=True)
    on_main(lambda: _publish(staging, final, root, state, keep), "the checkpoint could not be published")
    return final


def _place(tensors: dict, name: str, full: dict[str, torch.Tensor]) -> None:
    tensors["model"][name] = full.pop("weight")
    tensors["optimizer"] |= {f"{key}/{name}": value for key, value in full.items()}


def _fresh(staging: Path) -> None:
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)


def _publish(staging: Path, final: Path, root: Path, state: dict, keep: int) -> None:
    index = {}
    for path in sorted(staging.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            index |= dict.fromkeys(file.keys(), path.name)
    _write_json(staging / "index.json", index)
    _write_json(staging / "state.json", {"format": FORMAT, **state})
    files = {p.name: {"size": p.stat().st_size, "sha256": _file_hash(p)} for p in sorted(staging.iterdir())}
    _write_json(staging / "manifest.json", files)
    for path in staging.glob("*.json"):
        _flush(path)
    _flush(staging)
    shutil.rmtree(final, ignore_errors=True)
    staging.rename(final)
    pointer = root / ".latest"
    pointer.write_text(final.name + "\n")
    _flush(pointer)
    pointer.rename(root / "latest")
    _flush(root)
    for old in sorted(root.glob("step_*"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def verify(folder: Path) -> None:
    """Raise UserError unless every file of the checkpoint is there with the size and hash of its manifest."""
    try:
        listed = json.loads((folder / "manifest.json").read_text())
        files = {name: (entry["size"], entry["sha256"]) for name, entry in listed.items()}
        if missing := {"state.json", "index.json"} - files.keys():
            raise ValueError(f"it does not list {', '.join(sorted(missing))}")
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise UserError("a checkpoint has no readable manifest", got=f"{folder}: {error}", fix="use another one") from None
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.is_file():
            raise UserError("a file of a checkpoint is missing", got=path, fix="use another checkpoint, or delete this folder")
        if path.stat().st_size != size or _file_hash(path) != digest:
            raise UserError("a file of a checkpoint is damaged", got=path, fix="use another checkpoint, or delete this folder")


def newest(output_dir: Path, warn=print) -> Path | None:
    """The newest whole checkpoint of a run, or None; a damaged one is named through `warn` and passed over."""
    for folder in sorted((Path(output_dir) / FOLDER).glob("step_*"), reverse=True):
        try:
            verify(folder)
            return folder
        except UserError as error:
            warn(f"passing over {folder.name}: {error}")
    return None


class Reader:
    """The tensors of one verified checkpoint, by parameter name."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.state = json.loads((self.folder / "state.json").read_text())
        self.index = json.loads((self.folder / "index.json").read_text())
        self._open = {}

    def _get(self, key: str) -> torch.Tensor:
        name = self.index[key]
        if name not in self._open:
            self._open[name] = safe_open(self.folder / name, "pt")
        return self._open[name].get_tensor(key)

    def tensor(self, key: str, shape: torch.Size, first_expert: int | None) -> torch.Tensor:
        """One tensor of the given shape; for experts, those from `first_expert` on, stacked."""
        if first_expert is None:
            return self._get(key)
        return torch.stack([self._get(f"{key}.{first_expert + i}") for i in range(shape[0])])

    def check(self, model: nn.Module) -> None:
        """Raise UserError unless the checkpoint holds exactly this model's parameters (its experts may lie on other ranks)."""
        offsets, wanted = expert_offsets(model), {}
        for name, parameter in model.named_parameters():
            if name in offsets:
                wanted |= {f"{name}.{offsets[name] + i}": parameter.shape[1:] for i in range(parameter.shape[0])}
            else:
                wanted[name] = parameter.shape
        missing = [name for name in wanted if name not in self.index]
        stems = {name.rsplit(".", 1)[0] if name.rsplit(".", 1)[0] in offsets else name for name in self.index}
        extra = [s for s in stems if "/" not in s and s not in offsets and s not in wanted]
        other = [n for n in wanted if n in self.index and self._get(n).shape != wanted[n]] if not (missing or extra) else []
        if missing or extra or other:
            parts = [("missing", missing), ("not in this model", extra), ("of another shape", other)]
            got = "; ".join(f"{what}: {', '.join(sorted(names)[:3])} ({len(names)} in all)" for what, names in parts if names)
            raise UserError(
                "the checkpoint is of another model", got=f"{self.folder}: {got}",
                fix="resume with the recipe and --set of that run",
            )  # fmt: skip

    def load_weights(self, model: nn.Module) -> None:
        """Copy the weights into a model that holds all or some of the experts. Raises UserError for another model's."""
        self.check(model)
        offsets = expert_offsets(model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(self.tensor(name, parameter.shape, offsets.get(name)))

    def load_optimizer(self, engine) -> None:
        """Set master weights, moments and the step count of an engine whose model already has the weights."""
        offsets = expert_offsets(engine.model)
        master_state.prepare(engine, self.state["adam_steps"])
        for name, parameter in engine.model.named_parameters():
            shape = parameter.ds_shape if engine.stage == 3 else parameter.shape
            keys = {"weight": name, **{moment: f"{moment}/{name}" for moment in master_state.MOMENTS}}
            full = {kind: self.tensor(key, shape, offsets.get(name)) for kind, key in keys.items()}
            master_state.write(engine, parameter, full)
        barrier()
