"""The weights of LoRA that a run starts from: an adapter's, beside those of the base."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from imp_ds.families.arrival import Stored
from imp_ds.families.uni_moe.adapters.export import check_base
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


@dataclass(frozen=True)
class Beside:
    """What comes from an adapter, and everything else from the base."""

    adapter: AdapterWeights
    base: Stored

    def __contains__(self, name: str) -> bool:
        return name in self.adapter or name in self.base

    def fill(self, name: str, parameter: torch.Tensor) -> None:
        (self.adapter if name in self.adapter else self.base).fill(name, parameter)
