"""The folder of a language model: its tensors by name, read where they are needed and no more than that.

safetensors only: nothing is unpickled.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from imp_ds.errors import UserError
from imp_ds.families.uni_moe.parts import LANGUAGE_MODEL
from imp_ds.json_files import read_json

INDEX = "model.safetensors.index.json"
WITHIN = "language_model."  # how the names of a language model begin in a model of several parts
READ = 1 << 25  # bytes read after which files are closed, and their pages given back


class BaseFolder:
    """The tensors of a folder, in one file or several with an index; of a model of several parts, an exported one of ours or
    another, those of its language model. Raises UserError for one without, and a damaged file.

    field: of the recipe, that names the folder. within: how names of the part of a model of several parts begin that is taken;
        None: all of it is. fix: for messages.
    """

    def __init__(self, folder: str | Path, field: str = LANGUAGE_MODEL, within: str | None = WITHIN):
        self.folder, self.field = Path(folder), field
        self.fix = f"--set {field}=FOLDER with config.json and safetensors"
        self._open, self._read = {}, 0  # path -> file; bytes read from them
        self.places: dict[str, tuple[Path, str]] = {}  # name -> file, and the key there
        for path in self._files():
            self.places |= {key: (path, key) for key in self._file(path).keys()}
        if within is not None and any(key.startswith(within) for key in self.places):
            own = {key: place for key, place in self.places.items() if key.startswith(within)}
            self.places = {key.removeprefix(within): place for key, place in own.items()}

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
            raise UserError(f"{self.field}: its weights cannot be read", got=f"{path}: {key}: {error}", fix=self.fix) from None
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
            raise UserError(f"{self.field}: a file is missing", got=missing[0], fix="copy or download the folder again")
        if not paths:
            raise UserError(f"{self.field} holds no weights in safetensors", got=self.folder, fix=self.fix)
        return paths

    def _file(self, path: Path):
        if path not in self._open:
            try:
                self._open[path] = safe_open(path, "pt")
            except (OSError, SafetensorError) as error:
                raise UserError(f"{self.field}: its weights cannot be read", got=f"{path}: {error}", fix=self.fix) from None
        return self._open[path]
