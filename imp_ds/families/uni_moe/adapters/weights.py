"""The weights of LoRA that a run starts from: an adapter's, beside those of the base."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from imp_ds.errors import UserError
from imp_ds.families.arrival import Stored
from imp_ds.families.uni_moe.adapters.export import OTHERS, check_base
from imp_ds.families.uni_moe.adapters.files import Adapter
from imp_ds.families.uni_moe.parts import Part


class AdapterWeights:
    """What of a language model comes from an adapter's folder, as `imp_ds.families.arrival.Stored`: all of its LoRA, of the
    experts that it holds. The model may be on meta.

    base: what the language model is made of. Raises UserError as `imp_ds.families.uni_moe.adapters.files.Adapter`, and for an
    adapter of another base.
    """

    def __init__(self, folder: str, base: Part, language_model: nn.Module, num_experts: int):
        check_base(Path(folder), base)
        self.folder, self._tensors = folder, Adapter(folder, num_experts).of(language_model)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    @torch.no_grad()
    def fill(self, name: str, parameter: torch.Tensor) -> None:
        parameter.copy_(self._tensors[name])

    def copy_into(self, language_model: nn.Module) -> None:
        """Fill the model's LoRA."""
        for name, parameter in language_model.named_parameters():
            if name in self:
                self.fill(name, parameter)


@torch.no_grad()
def load_others(folder: str, model: nn.Module) -> list[str]:
    """Copy what was trained beside the language model, such as connectors, from an adapter of ours into a model that reads the
    same media; what its language model had is in the adapter's base. Returns a line that reports it. Raises UserError for another
    shape."""
    path = Path(folder) / OTHERS
    if not path.is_file():
        return []
    stored = {name: value for name, value in load_file(path).items() if not name.startswith("language_model.")}
    own = dict(model.named_parameters())
    for name in stored.keys() & own.keys():
        if stored[name].shape != own[name].shape:
            raise UserError(
                "what was trained beside the adapter is of another shape", got=f"{path}: {name}: {list(stored[name].shape)}",
                allowed=str(list(own[name].shape)), fix="set connectors and towers as that run had them",
            )  # fmt: skip
        own[name].copy_(stored[name])
    return [f"beside LoRA: {len(stored.keys() & own.keys())} of {len(stored)} parameters of {path}"] if stored else []


@dataclass(frozen=True)
class Beside:
    """What comes from an adapter, and everything else from the base."""

    adapter: AdapterWeights
    base: Stored

    def __contains__(self, name: str) -> bool:
        return name in self.adapter or name in self.base

    def fill(self, name: str, parameter: torch.Tensor) -> None:
        (self.adapter if name in self.adapter else self.base).fill(name, parameter)
