"""A model to train whose language model comes from a folder: it is put together on the meta device, and the language model's
weights arrive module by module, in the type that they keep and on the ranks that keep them.

An upcycled or sparse base of 13 billion parameters would else stand in float32 in the memory of every rank of a node.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from imp_ds.families.arrival import Arrival, Nothing, receive
from imp_ds.families.build import STD, spread_module
from imp_ds.families.uni_moe.adapters.weights import AdapterWeights, Beside
from imp_ds.families.uni_moe.base_weights import BaseWeights
from imp_ds.families.uni_moe.expert_slots import check_slots
from imp_ds.families.uni_moe.initial_weights import as_theirs
from imp_ds.families.uni_moe.train_module import UniMoeForTraining
from imp_ds.models.initialization import check_filled, initialize_seeded_module
from imp_ds.models.uni_moe.lora import CHANGES

PART = "uni_moe.language_model"
_GATES = (".moe.router.weight", ".maps.weight")  # computed in float32, whatever the type of the rest


def _beside(name: str) -> bool:
    return name.endswith(_GATES) or CHANGES in name


class Assembly:
    """`model`: the module to train, on the meta device, with this rank's experts. Raises UserError for a folder that does not fit
    it."""

    def __init__(self, run, config):
        self.seed, self.std = run.train.seed, getattr(config, "initializer_range", STD)
        self.model = spread_module(UniMoeForTraining, config, run.train.ep_size)
        self._part = self.model.get_submodule(PART)
        width, noise = config.text_config.intermediate_size, run.model.expert_noise
        check_slots(run.model.experts, config.text_config)
        drawn = dict(noise=noise, seed=self.seed)
        self.weights = BaseWeights(run.model.language_model, self._part, width, slots=run.model.experts, **drawn)
        self._slots = run.model.experts
        adapter, base = run.model.adapter, run.model.language_model
        self._adapter = None if adapter is None else AdapterWeights(adapter, base, self._part, config.num_experts)

    def dtype_of(self, engine: torch.dtype) -> Callable[[str], torch.dtype]:
        """The types that the language model's parameters are to have in an engine that computes in `engine`: what the engine
        casts has its type at once. In float32 a language model that is frozen, but for its gates and LoRA, keeps the type of
        its files."""
        trained = [name for name, parameter in self._part.named_parameters() if parameter.requires_grad]
        if engine != torch.float32 or not all(_beside(name) for name in trained):
            return lambda name: engine
        return lambda name: engine if _beside(name) or name not in self.weights else self.weights.dtype(name)

    def sources(self) -> dict[str, tuple[Path, str]]:
        """Parameter -> the file and the key there that it is as it stands."""
        return {f"{PART}.{name}": place for name, place in self.weights.sources()}

    @torch.no_grad()
    def finish(self, arrival: Arrival, *, read: bool) -> list[str]:
        """Give the model its weights; those of the folder where they are to be `read`, else they may be anything. Returns lines
        that report it."""
        self._finish_others()
        fresh = lambda path, module: self._fill(f"{PART}.{path}" if path else PART, module, self._part)  # noqa: E731
        stored = self.weights if self._adapter is None else Beside(self._adapter, self.weights)
        receive(self._part, PART, stored if read else Nothing(), fresh, arrival)
        self.weights.close()
        if not read:
            return []
        count = sum(getattr(p, "ds_numel", p.numel()) for p in self._part.parameters())
        said = [f"language model: {self.weights.base.folder}, {count:,} parameters here"]
        said += [] if self._adapter is None else [f"LoRA: {self._adapter.folder}"]
        return said + [f"expert {number} ({slot}): {folder}" for number, (slot, folder) in enumerate(self._slots.items())]

    def _finish_others(self) -> None:
        inside, before = set(self._part.modules()), {}
        others = [(path, module) for path, module in self.model.named_modules() if module not in inside]
        for _, module in others:
            module.to_empty(device="cpu", recurse=False)
            own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            before |= {id(tensor): tensor._version for tensor in own}
        of_theirs = {module: part for part in self.model.uni_moe.parts() for module in part.modules()}
        for path, module in others:
            if not any(child is self._part for child in module.modules()):
                self._fill(path, module, of_theirs.get(module))
        check_filled(self.model, before)

    def _fill(self, path: str, module: nn.Module, part) -> None:
        """The module's own parameters and buffers, afresh, as the family's `build` has them."""
        initialize_seeded_module(module, path, self.seed, self.std)
        if part is not None:
            as_theirs(part, {module: path}, self.seed)
