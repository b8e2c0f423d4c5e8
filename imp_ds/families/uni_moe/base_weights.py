"""The weights of a base language model, read from its folder parameter by parameter, each rank its own experts alone.

A base of many GiB is never in memory as a whole: a parameter is read when there is a place for it, a matrix of an expert at a
time, in the type that it is to have. safetensors only: nothing is unpickled."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from imp_ds.errors import UserError
from imp_ds.json_files import read_json
from imp_ds.models.uni_moe.lora import CHANGES
from imp_ds.models.uni_moe.upcycling import PARTS, ExpertSource, mixtures, share_rows, source_of

INDEX = "model.safetensors.index.json"
WITHIN = "language_model."  # how the names of a language model begin in a model of several parts
READ = 1 << 25  # bytes read after which files are closed, and their pages given back
_FIX = "--set model.language_model=FOLDER with config.json and safetensors"


class BaseFolder:
    """The tensors of a folder, in one file or several with an index; of a model of several parts, an exported one of ours or
    another, those of its language model. Raises UserError for one without, and a damaged file."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._open, self._read = {}, 0  # path -> file; bytes read from them
        self.places: dict[str, tuple[Path, str]] = {}  # name -> file, and the key there
        for path in self._files():
            self.places |= {key: (path, key) for key in self._file(path).keys()}
        if any(key.startswith(WITHIN) for key in self.places):
            own = {key: place for key, place in self.places.items() if key.startswith(WITHIN)}
            self.places = {key.removeprefix(WITHIN): place for key, place in own.items()}

    def __contains__(self, name: str) -> bool:
        return name in self.places

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._view(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        kind = self._view(name).get_dtype()
        return {"BF16": torch.bfloat16, "F16": torch.float16}.get(kind, torch.float32)

    def read(self, name: str, index: tuple = ()) -> torch.Tensor:
        """A part of a tensor. It may lie in the file's own pages: copy it, and let go of it."""
        path, key = self.places[name]
        try:
            part = self._view(name)[index] if index else self._file(path).get_tensor(key)
        except SafetensorError as error:
            raise UserError("the weights of the base cannot be read", got=f"{path}: {key}: {error}", fix=_FIX) from None
        self._read += part.nbytes
        if self._read > READ:
            self.close()
        return part

    def close(self) -> None:
        self._open.clear()
        self._read = 0

    def _view(self, name: str):
        """The tensor, not read yet."""
        path, key = self.places[name]
        return self._file(path).get_slice(key)

    def _files(self) -> list[Path]:
        if (self.folder / INDEX).is_file():
            names = sorted(set(read_json(self.folder / INDEX, dict).get("weight_map", {}).values()))
            paths = [self.folder / name for name in names]
        else:
            paths = sorted(self.folder.glob("*.safetensors"))
        if missing := [path for path in paths if not path.is_file()]:
            raise UserError("a file of the base is missing", got=missing[0], fix="copy or download the folder again")
        if not paths:
            raise UserError("the base holds no weights in safetensors", got=self.folder, fix=_FIX)
        return paths

    def _file(self, path: Path):
        if path not in self._open:
            try:
                self._open[path] = safe_open(path, "pt")
            except (OSError, SafetensorError) as error:
                raise UserError("the weights of the base cannot be read", got=f"{path}: {error}", fix=_FIX) from None
        return self._open[path]


class BaseWeights:
    """What of a language model, whose feed-forwards may have been replaced, comes from a base's folder. The model may be on
    meta, and hold a part of the experts alone.

    dense_width: feed-forward width of a dense base; noise, seed: of upcycling (`imp_ds.models.uni_moe.upcycling`).
    Raises UserError where a parameter of the model is not there, or of another shape.
    """

    def __init__(self, folder: str | Path, language_model: nn.Module, dense_width: int, *, noise: float = 0.0, seed: int = 0):
        self.base = BaseFolder(folder)
        self._experts: dict[str, tuple[ExpertSource, str, range]] = {}
        self._routers: dict[str, ExpertSource] = {}
        self._fresh: set[str] = set()
        num_experts = 0
        for path, layer, mixture in mixtures(language_model):
            source = source_of(mixture, self.base.read, self.base.places.keys(), layer, dense_width, noise=noise, seed=seed)
            experts = mixture.moe.experts
            held = range(experts.first, experts.first + experts.num_experts)
            self._experts |= {f"{path}.moe.experts.{name}": (source, name, held) for name in PARTS}
            self._routers[f"{path}.moe.router.weight"] = source
            self._fresh |= {f"{path}.maps.weight"}
            num_experts = mixture.moe.router.num_experts
        self._names = [name for name, _ in language_model.named_parameters()]
        self._fresh |= {name for name in self._names if CHANGES in name}
        for name, parameter in language_model.named_parameters():
            self._check(name, tuple(parameter.shape), num_experts)

    def __contains__(self, name: str) -> bool:
        """Whether all of the parameter comes from there."""
        if name in self._routers:
            return self._routers[name].layout.router is not None
        return name in self._experts or name in self.base and name not in self._fresh

    def dtype(self, name: str) -> torch.dtype:
        """The type of the parameter there."""
        if name in self._experts:
            source, part, held = self._experts[name]
            return self.base.dtype(source.name(part, held[0]))
        return self.base.dtype(self._key(name))

    @torch.no_grad()
    def fill(self, name: str, parameter: torch.Tensor) -> None:
        """Copy what is there of a parameter into it; of a dense base's fresh router nothing but that slices share rows."""
        if name in self._experts:
            source, part, held = self._experts[name]
            for place, number in enumerate(held):
                parameter[place].copy_(source.expert(part, number))
        elif name in self._routers and name not in self:
            share_rows(parameter, self._routers[name].slices)
        elif name in self:
            parameter.copy_(self.base.read(self._key(name)))

    def sources(self) -> Iterator[tuple[str, tuple[Path, str]]]:
        """Parameters that are tensors of the files as they are: (name, (file, key))."""
        for name in self._names:
            if name in self and name not in self._experts:
                yield name, self.base.places[self._key(name)]

    def _key(self, name: str) -> str:
        source = self._routers.get(name)
        return name if source is None else source.layer + source.layout.router

    def _check(self, name: str, shape: tuple[int, ...], num_experts: int) -> None:
        if name in self._fresh or name in self._routers and name not in self:
            return
        keys = {self._key(name): shape}
        if name in self._experts:
            source, part, held = self._experts[name]
            wanted = source.shape(part, shape[2] if part == "w2" else shape[1], num_experts)
            keys = {source.name(part, number): wanted for number in held}
        for key, wanted in keys.items():
            if key not in self.base:
                what = "a parameter of the language model is not in its folder"
                raise UserError(what, got=f"{self.base.folder}: {key}", fix=_FIX)
            if self.base.shape(key) != wanted:
                raise UserError(
                    "a parameter of the language model has another shape in its folder",
                    got=f"{self.base.folder}: {key}: {list(self.base.shape(key))}", allowed=str(list(wanted)),
                    fix="its weights do not fit its config.json",
                )  # fmt: skip
