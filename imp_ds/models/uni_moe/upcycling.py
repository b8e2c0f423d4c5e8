"""Weights of a base language model as weights of our mixtures, and back: names and layouts.

A base names the feed-forward, or the experts, of a layer in one of the ways of LAYOUTS; everything else has the same name here
and there. Ours are stacks over experts with the input axis first, a base's matrices have the output axis first:

    w1[e] = gate^T [D, F]    w3[e] = up^T [D, F]    w2[e] = down^T [F, D]

From a dense base experts are made by upcycling (Komatsuzaki et al., 2023, arXiv 2212.05055). Where an expert is as wide as the
dense feed-forward, each is a copy of it. Where it is S times as narrow, expert e is slice e mod S of the hidden width, of all
three matrices alike (fine-grained experts: He et al., 2024, arXiv 2410.07524). S consecutive experts hold one copy then, share
one row of the router, so that they are chosen together with 1 / S of the copy's weight each, and their down matrices are
multiplied by S: with a multiple of S experts for each token, the mixture starts as the dense feed-forward.

Shapes: E experts, D width, F feed-forward width of an expert.
"""

import hashlib
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

import torch
from torch import nn

from imp_ds.errors import UserError
from imp_ds.models.uni_moe.experts import ExpertFeedForward

Read = Callable[[str, tuple], torch.Tensor]  # (name, index) -> that part of a base's tensor


class Layout(NamedTuple):
    """How a base names the parts of a layer, after the layer's own prefix; `{e}` stands for the number of an expert."""

    gate: str
    up: str
    down: str
    router: str | None = None

    @property
    def is_fused(self) -> bool:
        """All experts in one tensor, gate above up."""
        return self.gate == self.up


LAYOUTS = {
    "dense": Layout("mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"),
    "mixtral": Layout(
        "block_sparse_moe.experts.{e}.w1.weight", "block_sparse_moe.experts.{e}.w3.weight",
        "block_sparse_moe.experts.{e}.w2.weight", "block_sparse_moe.gate.weight",
    ),
    "qwen3_moe": Layout(
        "mlp.experts.{e}.gate_proj.weight", "mlp.experts.{e}.up_proj.weight", "mlp.experts.{e}.down_proj.weight",
        "mlp.gate.weight",
    ),
    "fused": Layout("mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"),
}  # fmt: skip
PARTS = {"w1": "gate", "w3": "up", "w2": "down"}


def layout_of(names: Collection[str], layer: str) -> Layout:
    """The layout of the layer whose names begin with `layer` ("model.layers.0."), among the names of a base. Raises UserError for
    one that is not known."""
    for layout in LAYOUTS.values():
        if layer + layout.down.format(e=0) in names:
            return layout
    found = sorted(name for name in names if name.startswith(layer))[:8]
    raise UserError(
        "the base's feed-forwards are of an unknown kind", got=", ".join(found) or f"nothing that begins with {layer}",
        allowed=", ".join(layer + layout.down.format(e="N") for layout in LAYOUTS.values()),
    )  # fmt: skip


class ExpertSource(NamedTuple):
    """Where the experts of one mixture come from.

    read: gives parts of the base's tensors. layer: prefix of the layer's names. slices: S, 1 for copies, and for a sparse base.
    noise: standard deviation of what is added to each matrix of a copy or slice, in units of the matrix's own; drawn from (seed,
        layer, matrix, expert).
    """

    read: Read
    layer: str
    layout: Layout
    feed_forward: int
    slices: int = 1
    noise: float = 0.0
    seed: int = 0

    def expert(self, name: str, number: int) -> torch.Tensor:
        """The matrix `name` (w1, w2 or w3) of expert `number`, as the base has it but for its axes, a view: [D, F] or [F, D]."""
        matrix = self.read(self.name(name, number), self._index(name, number)).transpose(-1, -2)
        if self.layout.router is not None:
            return matrix
        matrix = matrix * self.slices if name == "w2" and self.slices > 1 else matrix
        if not self.noise:
            return matrix
        key = f"{self.seed}/{self.layer}{name}.{number}".encode()
        drawn = torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1)
        wide = matrix.float()
        return (wide + torch.randn(wide.shape, generator=drawn) * (self.noise * wide.std())).to(matrix.dtype)

    def shape(self, name: str, width: int, num_experts: int) -> tuple[int, ...]:
        """The shape that this tensor must have, where the model is `width` wide."""
        hidden = self.feed_forward * self.slices
        if self.layout.is_fused:
            return (num_experts, width, hidden) if name == "w2" else (num_experts, 2 * hidden, width)
        return (width, hidden) if name == "w2" else (hidden, width)

    def router(self) -> torch.Tensor | None:
        """The router's weight [E, D]; None: of a dense base, which has none."""
        return None if self.layout.router is None else self.read(self.layer + self.layout.router, (slice(None), slice(None)))

    def name(self, name: str, number: int) -> str:
        """The base's name of the tensor that holds the matrix `name` of an expert."""
        return self.layer + getattr(self.layout, PARTS[name]).format(e=number)

    def _index(self, name: str, number: int) -> tuple:
        width, every = self.feed_forward, slice(None)
        if self.layout.is_fused:
            return number, {"w1": slice(0, width), "w3": slice(width, 2 * width), "w2": every}[name], every
        if self.layout.router is not None:
            return every, every
        start = number % self.slices * width
        part = slice(start, start + width)
        return (every, part) if name == "w2" else (part, every)


def mixtures(language_model: nn.Module) -> Iterator[tuple[str, str, ExpertFeedForward]]:
    """Of each mixture its path ("model.layers.0.mlp"), the prefix of its layer's names ("model.layers.0."), and itself."""
    for path, module in language_model.named_modules():
        if isinstance(module, ExpertFeedForward):
            yield path, path.rpartition(".")[0] + ".", module


def source_of(
    mixture: ExpertFeedForward, read: Read, names: Collection[str], layer: str, dense_width: int, **drawn
) -> ExpertSource:
    """Where the experts of a mixture come from; `dense_width` is the feed-forward width of the base, `drawn` noise and seed.
    Raises UserError for experts that are no slices of it."""
    layout, width, count = layout_of(names, layer), mixture.moe.experts.feed_forward, mixture.moe.router.num_experts
    if layout.router is not None:
        return ExpertSource(read, layer, layout, width)
    return ExpertSource(read, layer, layout, width, slices_of(dense_width, width, count), **drawn)


def slices_of(dense_width: int, width: int, count: int) -> int:
    """Into how many slices `count` experts of that width cut the dense feed-forward. Raises UserError where they do not."""
    if dense_width % width or count % (dense_width // width):
        raise UserError(
            "the experts are no slices of the dense feed-forward",
            got=f"{count} experts of width {width}, a dense width of {dense_width}",
            allowed="a width that divides it, into as many slices as divide the number of experts",
        )  # fmt: skip
    return dense_width // width


def share_rows(weight_ED: torch.Tensor, slices: int) -> None:
    """Give the slices of each copy one row of a fresh router, in place."""
    weight_ED.copy_(weight_ED[::slices].repeat_interleave(slices, 0))


def from_base(base: dict[str, torch.Tensor], language_model: nn.Module, dense_width: int, **drawn) -> dict[str, torch.Tensor]:
    """A base's state dict by our names, for `language_model`, with feed-forwards replaced. What is fresh (the routers of a dense
    base, the maps before a gate) is not in it. Arguments and errors as of `source_of`."""
    ours, taken = {}, set()
    for path, layer, mixture in mixtures(language_model):
        def read(name: str, index: tuple) -> torch.Tensor:
            taken.add(name)
            return base[name][index]

        source, experts = source_of(mixture, read, base.keys(), layer, dense_width, **drawn), mixture.moe.experts
        for name in PARTS:
            numbers = range(experts.first, experts.first + experts.num_experts)
            ours[f"{path}.moe.experts.{name}"] = torch.stack([source.expert(name, number) for number in numbers])
        if (router := source.router()) is not None:
            ours[f"{path}.moe.router.weight"] = router
    return {name: tensor for name, tensor in base.items() if name not in taken} | ours


def to_base(ours: dict[str, torch.Tensor], layout: str) -> dict[str, torch.Tensor]:
    """The inverse for a sparse base, from complete experts, with the names of that layout of LAYOUTS. Maps before a gate have no
    place there: they must be the identity, or UserError is raised."""
    base, found = {}, LAYOUTS[layout]
    for name, tensor in ours.items():
        layer, is_ours, part = name.partition("mlp.moe.")
        if name.endswith(".mlp.maps.weight"):
            if not torch.equal(tensor, torch.eye(tensor.shape[-1], dtype=tensor.dtype).expand_as(tensor)):
                raise UserError("maps of modalities before the gate have no place in the base's layout", got=name)
        elif not is_ours:
            base[name] = tensor
        elif part == "router.weight":
            base[layer + found.router] = tensor
        else:
            matrix = getattr(found, PARTS[part.removeprefix("experts.")])
            base |= {layer + matrix.format(e=e): weight.t().contiguous() for e, weight in enumerate(tensor)}
    return base
