"""Find a whole checkpoint, and read any range of any parameter from it, whoever wrote it.

JSON and safetensors are all that is read: nothing in a checkpoint can be executed.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from imp_ds.errors import UserError
from imp_ds.json_files import read_json
from imp_ds.parallel.groups import barrier
from imp_ds.train import master_state
from imp_ds.train.checkpoint import files

# what the state holds, where it does
_KINDS = {
    "step": int, "adam_steps": int, "seconds": (int, float), "skipped": int, "rollbacks": int, "guard": (dict, type(None)),
    "rejected": (dict, type(None)), "world_size": int, "ep_size": int, "config": dict, "run": dict, "processor": dict,
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
        path = folder / name
        if not path.is_file():
            raise UserError("a file of a checkpoint is missing", got=path, fix=_ANOTHER)
        if path.stat().st_size != size or _hash(path) != digest:
            raise UserError("a file of a checkpoint is damaged", got=path, fix=_ANOTHER)
    _check_state(folder, read_json(folder / files.STATE, dict, _ANOTHER))
    _check_index(folder, read_json(folder / files.INDEX, dict, _ANOTHER))


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


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def newest(output_dir: Path, warn=print) -> Path | None:
    """The newest whole checkpoint of a run, or None; a damaged one is named through `warn` and passed over."""
    for folder in reversed(files.published(Path(output_dir) / files.FOLDER)):
        try:
            verify(folder)
            return folder
        except UserError as error:
            warn(f"passing over {folder.name}: {error}")
    return None


class Reader:
    """The tensors of one verified checkpoint, by parameter name. Raises UserError for one of another format."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.state = read_json(self.folder / files.STATE, dict, _ANOTHER)
        if self.state.get("format") != files.FORMAT:
            raise UserError(
                "the checkpoint was written in another format", got=f"{self.folder}: format {self.state.get('format')}",
                allowed=f"format {files.FORMAT}", fix="go on with the version of imp_ds that wrote it, or start a new run",
            )  # fmt: skip
        self.index = read_json(self.folder / files.INDEX, dict, _ANOTHER)
        self._open = {}

    def read(self, key: str, start: int, stop: int) -> torch.Tensor:
        """Elements start .. stop, float32 [stop - start], of a flattened tensor: a parameter's name for its weight,
        "exp_avg/" or "exp_avg_sq/" before it for a moment."""
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
        file = self._file(name)
        try:
            part = file.get_slice(key)[start:stop]
        except Exception as error:  # safetensors has errors of its own
            raise UserError("a checkpoint lacks a parameter", got=f"{self.folder / name}: {error}", fix=_ANOTHER) from None
        if part.shape != (stop - start,):
            raise UserError("a checkpoint lacks a part of a parameter", got=f"{self.folder / name}: {key}", fix=_ANOTHER)
        return part

    def _file(self, name: str):
        if name not in self._open:
            if Path(name).name != name:
                raise UserError("a checkpoint refers to a file that is not in its folder", got=name, fix=_ANOTHER)
            try:
                self._open[name] = safe_open(self.folder / name, "pt")
            except Exception as error:  # safetensors has errors of its own
                raise UserError("a file of a checkpoint is damaged", got=f"{self.folder / name}: {error}", fix=_ANOTHER) from None
        return self._open[name]

    def check(self, model: nn.Module) -> None:
        """Raise UserError unless the checkpoint holds exactly this model's parameters (its experts may lie on other ranks)."""
        wanted = {name: shape for name, (shape, _) in master_state.whole_parameters(model).items()}
        held = {name: tuple(entry["shape"]) for name, entry in self.index.items() if "/" not in name}
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

    def load_weights(self, model: nn.Module, report: Callable[[str, int, int], None] | None = None) -> None:
        """Copy the weights into a model that holds all or some of the experts; `report` is called with ("parameters", done, of
        how many). Raises UserError for another model's."""
        self.check(model)
        wholes = master_state.whole_parameters(model)
        with torch.no_grad():
            parameters = list(model.named_parameters())
            for done, (name, parameter) in enumerate(parameters, 1):
                first = wholes[name][1]
                parameter.copy_(self.read(name, first, first + parameter.numel()).view(parameter.shape))
                if report is not None:
                    report("parameters", done, len(parameters))

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
        if engine.stage == 3:
            master_state.refresh_zero3_weights(engine)
        else:
            self.load_weights(engine.model)
