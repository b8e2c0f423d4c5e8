"""The weights of an exported model that a run starts from (`train.init_from`), on any number of ranks.

safetensors only: nothing is unpickled.
"""

from collections.abc import Callable
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedTokenizerBase

from imp_ds.errors import UserError
from imp_ds.modalities.text.tokenizers import load_tokenizer
from imp_ds.parallel.full_parameters import full_parameters, persistent_buffers

UNREADABLE = "the weights of train.init_from cannot be read"


class StoredWeights:
    """What `folder` holds, by the names of the module to train; nothing is read yet.

    name_of: the name in the module of a tensor in the files. Raises UserError for a folder without weights, and a damaged file.
    """

    def __init__(self, folder: Path, name_of: Callable[[str], str] = str):
        self.folder = folder
        self._places: dict[str, tuple] = {}  # name -> (open file, key, path of the file)
        for path in sorted(folder.glob("model*.safetensors")):
            try:
                file = safe_open(path, "pt")
            except (OSError, SafetensorError) as error:
                raise UserError(UNREADABLE, got=f"{path}: {error}") from None
            self._places |= {name_of(key): (file, key, path) for key in file.keys()}
        if not self._places:
            raise UserError("train.init_from holds no weights", got=folder, allowed="a folder with model.safetensors")

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __getitem__(self, name: str) -> torch.Tensor:
        file, key, _ = self._places[name]
        return file.get_tensor(key)

    def sources(self, model: nn.Module) -> dict[str, tuple[Path, str]]:
        """Parameter -> the file that `copy_into` takes it from, and its key there."""
        taken = [name for name, (shape, _) in full_parameters(model).items() if self._fits(name, shape)]
        return {name: (self._places[name][2], self._places[name][1]) for name in taken}

    def copy_into(self, model: nn.Module, may_be_fresh: Callable[[str], bool] = lambda name: False) -> list[str]:
        """Copy all that fits into a fresh model, not yet wrapped by DeepSpeed, which may hold a part of the experts only.

        may_be_fresh: whether a parameter of that name may be missing, or of another shape.

        Returns three lines that report what was loaded, what stays fresh and what was left over. Raises UserError where one that
        may not be fresh does not fit; the model is unchanged then.
        """
        try:
            return self._copied(model, may_be_fresh)
        except SafetensorError as error:
            raise UserError(UNREADABLE, got=f"{self.folder}: {error}") from None

    @torch.no_grad()
    def _copied(self, model: nn.Module, may_be_fresh: Callable[[str], bool]) -> list[str]:
        full_shapes, loaded, fresh = full_parameters(model), [], []
        for name, (shape, _) in full_shapes.items():
            if self._fits(name, shape):
                loaded.append(name)
            elif may_be_fresh(name):
                fresh.append(name)
            else:
                raise UserError(
                    "a parameter of the model is not in train.init_from, or of another shape", got=f"{self.folder}: {name}",
                    allowed=f"shape {list(shape)}", fix="export that model again; its weights do not fit its config.json",
                )  # fmt: skip
        for name in loaded:
            parameter, (shape, start) = model.get_parameter(name), full_shapes[name]
            first = start // prod(shape[1:])  # of the experts that are held here
            parameter.copy_(self._view(name)[first : first + len(parameter)] if shape else self[name])
        buffers = {name: b for name, b in persistent_buffers(model).items() if self._fits(name, tuple(b.shape))}
        for name, buffer in buffers.items():
            buffer.copy_(self[name])
        left = sorted(self._places.keys() - set(loaded) - buffers.keys())
        return [
            f"starting from {self.folder}: {len(loaded)} parameters loaded",
            f"  fresh, not there in this shape: {_some(fresh)}",
            f"  left over: {_some(left)}",
        ]

    def _fits(self, name: str, shape: tuple[int, ...]) -> bool:
        return name in self._places and self._view(name).get_shape() == list(shape)

    def _view(self, name: str):
        """The tensor, not read yet."""
        file, key, _ = self._places[name]
        return file.get_slice(key)


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Raise UserError unless the model in `folder` has the same vocabulary, or no tokenizer beside it."""
    if (folder / "tokenizer_config.json").is_file() and load_tokenizer(str(folder)).get_vocab() != tokenizer.get_vocab():
        raise UserError(
            "the run's tokenizer is not that of train.init_from: its words would get other words' weights",
            got=folder, fix=f"--set data.tokenizer={folder}",
        )  # fmt: skip


def _some(names: list[str]) -> str:
    return (", ".join(names[:5]) + (f", ... ({len(names)} in all)" if len(names) > 5 else "")) or "none"
