"""The weights of a base language model, read from its folder parameter by parameter, each rank its own experts alone.

A base of many GiB is never in memory as a whole: a parameter is read when there is a place for it, a matrix of an expert at a
time, in the type that it is to have."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from imp_ds.errors import UserError
from imp_ds.families.uni_moe.base_folder import BaseFolder
from imp_ds.families.uni_moe.expert_slots import Slots
from imp_ds.models.uni_moe.lora import CHANGES
from imp_ds.models.uni_moe.upcycling import PARTS, ExpertSource, mixtures, share_rows, source_of


class BaseWeights:
    """What of a language model, whose feed-forwards may have been replaced, comes from a base's folder. The model may be on
    meta, and hold a part of the experts alone.

    dense_width: feed-forward width of a dense base; noise, seed: of upcycling (`imp_ds.models.uni_moe.upcycling`).
    slots: name -> folder of the model whose feed-forwards are the experts of that slot; none: the base's are all experts.
    Raises UserError where a parameter of the model is not there, or of another shape.
    """

    def __init__(
        self, folder: str | Path, language_model: nn.Module, dense_width: int, *, noise: float = 0.0, seed: int = 0,
        slots: dict[str, str] | None = None,
    ):  # fmt: skip
        self.base = BaseFolder(folder)
        self._slots = Slots(slots or {}, noise=noise, seed=seed)
        # of a stack: where its experts come from, one source for each or one for all; which matrix; those that are held here
        self._experts: dict[str, tuple[list[tuple[BaseFolder, ExpertSource]], str, range]] = {}
        self._routers: dict[str, ExpertSource] = {}
        self._fresh: set[str] = set()
        num_experts = 0
        for path, layer, mixture in mixtures(language_model):
            source = source_of(mixture, self.base.read, self.base.places.keys(), layer, dense_width, noise=noise, seed=seed)
            experts = mixture.moe.experts
            held = range(experts.first, experts.first + experts.num_experts)
            given = self._slots.sources(layer, experts.feed_forward) if slots else [(self.base, source)]
            self._experts |= {f"{path}.moe.experts.{name}": (given, name, held) for name in PARTS}
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
            folder, source, part = self._expert(name, self._experts[name][2][0])
            return folder.dtype(source.name(part, 0))
        return self.base.dtype(self._key(name))

    @torch.no_grad()
    def fill(self, name: str, parameter: torch.Tensor) -> None:
        """Copy what is there of a parameter into it; of a dense base's fresh router nothing but that slices share rows."""
        if name in self._experts:
            for place, number in enumerate(self._experts[name][2]):
                _, source, part = self._expert(name, number)
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

    def close(self) -> None:
        """Close the files, which are opened again where they are read."""
        self.base.close()
        self._slots.close()

    def _expert(self, name: str, number: int) -> tuple[BaseFolder, ExpertSource, str]:
        """Where expert `number` of a stack comes from, and which of its matrices it is."""
        given, part, _ = self._experts[name]
        return (*given[number % len(given)], part)

    def _key(self, name: str) -> str:
        source = self._routers.get(name)
        return name if source is None else source.layer + source.layout.router

    def _check(self, name: str, shape: tuple[int, ...], num_experts: int) -> None:
        if name in self._fresh or name in self._routers and name not in self:
            return
        if name not in self._experts:
            return _check_tensor(self.base, self._key(name), shape)
        for number in self._experts[name][2]:
            folder, source, part = self._expert(name, number)
            wanted = source.shape(part, shape[2] if part == "w2" else shape[1], num_experts)
            _check_tensor(folder, source.name(part, number), wanted)


def _check_tensor(folder: BaseFolder, key: str, wanted: tuple[int, ...]) -> None:
    if key not in folder:
        raise UserError("a parameter of the language model is not in its folder", got=f"{folder.folder}: {key}", fix=folder.fix)
    if folder.shape(key) != wanted:
        raise UserError(
            "a parameter of the language model has another shape in its folder",
            got=f"{folder.folder}: {key}: {list(folder.shape(key))}", allowed=str(list(wanted)),
            fix="its weights do not fit its config.json",
        )  # fmt: skip
