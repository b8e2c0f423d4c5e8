"""Find a complete checkpoint, and read any range of any parameter from it, whatever wrote it.

JSON and safetensors are all that is read: nothing in a checkpoint can be executed.
"""

from collections.abc import Callable
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from imp_ds.errors import UserError
from imp_ds.json_files import read_json
from imp_ds.parallel.full_parameters import full_parameters, persistent_buffers
from imp_ds.parallel.groups import barrier, rank, world_size
from imp_ds.train.checkpoint import files
from imp_ds.train.checkpoint.snapshot import BUFFER, RANDOM
from imp_ds.train.engine import master_state

# what the state holds, where it does
_KINDS = {
    "step": int, "adam_steps": int, "seconds": (int, float), "skipped": int, "rollbacks": int, "guard": (dict, type(None)),
    "rejected": (dict, type(None)), "world_size": int, "ep_size": int, "config": dict, "run": dict, "processor": dict,
    "best": (dict, type(None)),
}  # fmt: skip
_ANOTHER = "use another checkpoint, or delete this folder"


def verify(folder: Path) -> None:
    """Raise UserError unless every file of the checkpoint is there with the size and hash of its manifest, and state and index
    are as this program writes them."""
    try:
        listed = read_json(folder / files.MANIFEST, dict)
        entries = {name: (entry["size"], entry["sha256"]) for name, entry in listed.items()}
        if missing := {files.STATE, files.INDEX} - entries.keys():
            raise ValueError(f"it does not list {', '.join(sorted(missing))}")
        if foreign := [name for name in entries if Path(name).name != name]:
            raise ValueError(f"it lists {foreign[0]!r}, which is not a file of this folder")
    except (ValueError, KeyError, TypeError) as error:  # a UserError is a ValueError
        raise UserError("a checkpoint has no readable manifest", got=f"{folder}: {error}", fix="use another one") from None
    for name, (size, digest) in entries.items():
        _check_file(folder / name, size, digest)
    _check_state(folder, read_json(folder / files.STATE, dict, _ANOTHER))
    _check_index(folder, read_json(folder / files.INDEX, dict, _ANOTHER))
    # one of an earlier format, which the reader refuses, has none
    references = read_json(folder / files.REFERENCES, dict, _ANOTHER) if files.REFERENCES in entries else {}
    _check_references(folder, references)
    for path, entry in ((Path(entry["path"]), entry) for entry in references.values()):
        if not path.is_absolute():  # the run's own; of others, which may have moved, the reader knows more
            _check_file(folder.parent / path, entry["size"], entry["sha256"])


def _check_file(path: Path, size: int, digest: str) -> None:
    if not path.is_file():
        raise UserError("a file of a checkpoint is missing", got=path, fix=_ANOTHER)
    if path.stat().st_size != size or files.hash_of(path) != digest:
        raise UserError("a file of a checkpoint is damaged", got=path, fix=_ANOTHER)


def _check_state(folder: Path, state: dict) -> None:
    for name, kind in _KINDS.items():
        if name in state and (not isinstance(state[name], kind) or isinstance(state[name], bool)):
            raise UserError("the state of a checkpoint is damaged", got=f"{folder / files.STATE}: {name}", fix=_ANOTHER)
    if state.get("step") != files.step_of(folder):
        raise UserError(
            "the checkpoint is not of the step that its folder names", got=f"{folder}: step {state.get('step')}",
            fix="give the folder back its name, or use another checkpoint",
        )  # fmt: skip


def _check_index(folder: Path, index: dict) -> None:
    """Each tensor: {"shape": [size, ...], "parts": [[start, stop, file], ...]}, and each file one of this folder."""
    for key, entry in index.items():
        try:
            shape, parts = entry["shape"], entry["parts"]
            good = all(type(size) is int and size >= 0 for size in shape)
            for start, stop, name in parts:
                good = good and type(start) is type(stop) is int and 0 <= start <= stop and Path(name).name == name
        except (KeyError, TypeError, ValueError):
            good = False
        if not good:
            raise UserError("the index of a checkpoint is damaged", got=f"{folder / files.INDEX}: {key}", fix=_ANOTHER)


def _check_references(folder: Path, references: dict) -> None:
    """Each file: {"path": absolute, or in the run's own folder of what is not trained, "size": bytes, "sha256": hash}."""
    for name, entry in references.items():
        try:
            path = Path(entry["path"])
            good = path.is_absolute() or path.parts == (files.FROZEN, path.name)
            good = good and type(entry["size"]) is int and isinstance(entry["sha256"], str) and Path(name).name == name
        except (KeyError, TypeError):
            good = False
        if not good:
            raise UserError("references of a checkpoint are damaged", got=f"{folder / files.REFERENCES}: {name}", fix=_ANOTHER)


def newest(output_dir: Path, warn=print) -> Path | None:
    """The newest complete checkpoint of a run, or None; a damaged one is named through `warn` and passed over."""
    for folder in reversed(files.published(Path(output_dir) / files.FOLDER)):
        try:
            verify(folder)
            return folder
        except UserError as error:
            warn(f"passing over {folder.name}: {error}")
    return None


class Reader:
    """The tensors of one verified checkpoint, by parameter name.

    base: the folder of the model that the run started from, if it may have moved: what was not trained is read there. None, or
        where it does not have such a file: the place that the checkpoint names.

    Raises UserError for one of another format.
    """

    def __init__(self, folder: Path, base: str | Path | None = None):
        self.folder = Path(folder)
        self.state = read_json(self.folder / files.STATE, dict, _ANOTHER)
        if self.state.get("format") != files.FORMAT:
            raise UserError(
                "the checkpoint was written in another format", got=f"{self.folder}: format {self.state.get('format')}",
                allowed=f"format {files.FORMAT}", fix="go on with the version of imp_ds that wrote it, or start a new run",
            )  # fmt: skip
        self.index = read_json(self.folder / files.INDEX, dict, _ANOTHER)
        self._named = read_json(self.folder / files.REFERENCES, dict, _ANOTHER)  # as the checkpoint names them
        self.references = {name: entry | {"path": _place_now(entry["path"], base)} for name, entry in self._named.items()}
        self._open = {}

    def check_base(self) -> None:
        """Raise UserError unless the files outside of the run that hold what was not trained are those that it was saved with."""
        for name, entry in self.references.items():
            path, before = Path(entry["path"]), self._named[name]
            if not path.is_absolute():
                continue
            found = f"sha256 {files.hash_of(path)}" if path.is_file() else "no such file"
            if found != f"sha256 {entry['sha256']}":
                raise UserError(
                    "the weights that the run does not train are no longer those that it was saved with", got=f"{path}: {found}",
                    allowed=f"{before['path']}: sha256 {before['sha256']}, as {self.folder / files.REFERENCES} names it",
                    fix="put that file back, or give where the model is now: --set train.init_from=FOLDER --allow_changes",
                )  # fmt: skip

    def read(self, key: str, start: int, stop: int) -> torch.Tensor:
        """Elements start .. stop, float32 [stop - start], of a flattened tensor: a parameter's name for its weight,
        "exp_avg/" or "exp_avg_sq/" before it for a moment, "ema/" for its average."""
        found, position = torch.empty(stop - start), start
        for first, last, file in self.index[key]["parts"]:
            if first <= position < min(last, stop):
                end = min(last, stop)
                found[position - start : end - start] = self._part(file, key, position - first, end - first)
                position = end
        if position < stop:
            raise UserError("a checkpoint lacks a part of a parameter", got=f"{self.folder}: {key} from {position}", fix=_ANOTHER)
        return found

    def _part(self, name: str, key: str, start: int, stop: int) -> torch.Tensor:
        file, held = self._file(name), self.index[key].get("key", key)
        try:
            shape = file.get_slice(held).get_shape()
            inner = prod(shape[1:])  # of another model's file, whose tensors are not flat, whole rows
            rows = slice(start // inner, -(-stop // inner)) if inner else slice(0)
            part = file.get_slice(held)[rows] if shape else file.get_tensor(held)
            part = part.reshape(-1)[start - rows.start * inner :][: stop - start] if shape else part.reshape(1)
        except Exception as error:  # safetensors has errors of its own
            raise UserError("a checkpoint lacks a parameter", got=f"{self._path(name)}: {error}", fix=_ANOTHER) from None
        if part.shape != (stop - start,):
            raise UserError("a checkpoint lacks a part of a parameter", got=f"{self._path(name)}: {key}", fix=_ANOTHER)
        return part

    def _path(self, name: str) -> Path:
        return self.folder.parent / self.references[name]["path"] if name in self.references else self.folder / name

    def _file(self, name: str):
        if name not in self._open:
            if Path(name).name != name:
                raise UserError("a checkpoint refers to a file that is not in its folder", got=name, fix=_ANOTHER)
            try:
                self._open[name] = safe_open(self._path(name), "pt")
            except Exception as error:  # safetensors has errors of its own
                raise UserError("a file of a checkpoint is damaged", got=f"{self._path(name)}: {error}", fix=_ANOTHER) from None
        return self._open[name]

    def _complete(self, name: str, key: str) -> torch.Tensor:
        """A small tensor as it was saved, its type and shape too."""
        try:
            return self._file(name).get_tensor(key)
        except Exception as error:  # safetensors has errors of its own
            raise UserError("a checkpoint lacks a tensor", got=f"{self._path(name)}: {error}", fix=_ANOTHER) from None

    def check(self, model: nn.Module) -> None:
        """Raise UserError unless the checkpoint holds exactly this model's parameters (its experts may lie on other ranks) and
        persistent buffers."""
        wanted = {name: shape for name, (shape, _) in full_parameters(model).items()}
        wanted |= {BUFFER + name: tuple(buffer.shape) for name, buffer in persistent_buffers(model).items()}
        states = tuple(f"{kind}/" for kind in (*master_state.MOMENTS, master_state.AVERAGE))
        held = {name: tuple(entry["shape"]) for name, entry in self.index.items() if not name.startswith(states)}
        parts = [
            ("missing", wanted.keys() - held.keys()),
            ("not in this model", held.keys() - wanted.keys()),
            ("of another shape", {name for name in wanted.keys() & held.keys() if wanted[name] != held[name]}),
        ]
        if any(names for _, names in parts):
            got = "; ".join(f"{what}: {', '.join(sorted(names)[:3])} ({len(names)} in all)" for what, names in parts if names)
            raise UserError(
                "the checkpoint is of another model", got=f"{self.folder}: {got}",
                fix="resume with the recipe and --set of that run",
            )  # fmt: skip

    def load_weights(
        self, model: nn.Module, report: Callable[[str, int, int], None] | None = None, averaged: bool = False
    ) -> None:
        """Copy weights and persistent buffers into a model that holds all or some of the experts; `report` is called with
        ("parameters", done, of how many). averaged: of what was trained the average of the weights. Raises UserError for another
        model's, and where no average was kept."""
        self.check(model)
        keys = {name: name for name, _ in model.named_parameters()}
        if averaged:
            keys = {name: average if (average := f"{master_state.AVERAGE}/{name}") in self.index else name for name in keys}
            if keys.keys() == set(keys.values()):
                raise UserError(
                    "the run kept no average of its weights", got=f"train.ema = None in {self.folder}",
                    fix="export without --ema, or train with --set train.ema=0.999",
                )  # fmt: skip
        full_shapes = full_parameters(model)
        with torch.no_grad():
            for done, (name, key) in enumerate(keys.items(), 1):
                parameter, first = model.get_parameter(name), full_shapes[name][1]
                parameter.copy_(self.read(key, first, first + parameter.numel()).view(parameter.shape))
                if report is not None:
                    report("parameters", done, len(keys))
        self.load_buffers(model)

    def load_buffers(self, model: nn.Module) -> None:
        """Copy the persistent buffers, bit for bit."""
        with torch.no_grad():
            for name, buffer in persistent_buffers(model).items():
                saved = self._complete(self.index[BUFFER + name]["parts"][0][2], BUFFER + name)
                if saved.shape != buffer.shape or saved.dtype != buffer.dtype:
                    got, allowed = (f"{one.dtype} {list(one.shape)}" for one in (saved, buffer))
                    raise UserError("a buffer of the checkpoint is of another kind", got=f"{name}: {got}", allowed=allowed)
                buffer.copy_(saved)

    def random_state_of(self, device: torch.device) -> dict[str, torch.Tensor] | None:
        """The state of this rank's random generators; None when another number of ranks wrote the checkpoint, or another kind of
        device."""
        name, writers = files.file_name(RANDOM, rank()), len(list(self.folder.glob(f"{RANDOM}-*.safetensors")))
        if writers != world_size():
            return None
        keys = set(self._file(name).keys())
        return {key: self._complete(name, key) for key in keys} if ("cuda" in keys) == (device.type == "cuda") else None

    def load_optimizer(self, engine) -> None:
        """Set master weights, moments and the step count of an engine whose model already has the weights.

        Each rank reads its own ranges only.
        """
        master_state.prepare(engine, self.state["adam_steps"])
        for piece in master_state.slices(engine):
            for kind, value in piece.tensors.items():
                key = piece.name if kind == master_state.WEIGHT else f"{kind}/{piece.name}"
                value.copy_(self.read(key, piece.start, piece.start + piece.numel))
        barrier()

    def restore(self, engine) -> None:
        """Take an engine that has trained back to the checkpoint, weights and optimizer, in place; all ranks call it."""
        self.load_optimizer(engine)
        self.load_buffers(engine.model)
        master_state.refresh_weights(engine)


def _place_now(path: str, base: str | Path | None) -> str:
    """Where a referred file is to be read: in `base`, if it has one of that name."""
    moved = Path(base).resolve() / Path(path).name if base is not None and Path(path).is_absolute() else None
    return str(moved) if moved is not None and moved.is_file() else path
