"""Initial weights: one rule for each kind of module, and seeds that do not know how many ranks there are.

The release does not state its dense initialiser; Flax's default, LeCun normal, is used for every matrix, and
N(0, 1) for tables, N(0, initializer_range) for routers (IMP release, `modeling/routing.py`).
"""

import hashlib
from collections.abc import Callable

import torch
from torch import nn
from transformers import initialization as init

from imp_ds.errors import UserError
from imp_ds.modalities.vision.patches import PatchProjection
from imp_ds.models.imp.encoder.prompts import DeepPrompts
from imp_ds.moe.experts import ExpertWeights
from imp_ds.moe.low_rank import LowRank, LowRankExperts
from imp_ds.moe.routers.context import ContextPool
from imp_ds.moe.routers.router import Router
from imp_ds.moe.soft_merging import MergeRouter

GeneratorFor = Callable[[str], torch.Generator | None]


def _lecun(tensor: torch.Tensor, fan_in: int, generator: torch.Generator | None) -> None:
    init.normal_(tensor, mean=0.0, std=fan_in**-0.5, generator=generator)


def initialize_module(module: nn.Module, std: float, generator_for: GeneratorFor = lambda key: None) -> None:
    """Initialise the parameters that `module` itself owns; `generator_for(key)` gives the source of randomness.

    A module from a higher floor (an objective) may bring its own rule as `initialize_parameters()`.
    """
    if hasattr(module, "initialize_parameters"):
        module.initialize_parameters()
    elif isinstance(module, (nn.Linear, PatchProjection)):
        _lecun(module.weight, module.in_features, generator_for("weight"))
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        # of the size of a projected patch and of a normed position: smaller words drown in the positions added to them
        init.normal_(module.weight, mean=0.0, std=1.0, generator=generator_for("weight"))
    elif isinstance(module, nn.LayerNorm):
        init.ones_(module.weight)
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, (Router, MergeRouter)):
        init.normal_(module.weight, mean=0.0, std=std, generator=generator_for("weight"))
        for buffer in module.buffers(recurse=False):  # what a router counts, and what it has learned by that
            init.zeros_(buffer)
    elif isinstance(module, DeepPrompts):
        init.normal_(module.vectors, mean=0.0, std=1.0, generator=generator_for("vectors"))  # they are normed
    elif isinstance(module, ContextPool):
        init.normal_(module.query, mean=0.0, std=std, generator=generator_for("query"))
    elif isinstance(module, (LowRank, LowRankExperts)):
        if not getattr(module.A, "_is_hf_initialized", False):
            module.draw(generator_for)
    elif isinstance(module, ExpertWeights):
        for name, parameter in module.named_parameters(recurse=False):
            if getattr(parameter, "_is_hf_initialized", False):  # loaded; its slices below do not carry the mark
                continue
            for i in range(module.num_experts):
                _lecun(parameter[i], parameter.shape[1], generator_for(f"{name}.{module.first + i}"))


@torch.no_grad()
def initialize_seeded(model: nn.Module, seed: int, std: float) -> None:
    """Initialise every parameter and buffer from (seed, its name, its expert) alone: the same on any number of ranks.

    Raises UserError for a module that holds some which no rule fills.
    """
    before = versions(model)
    for path, module in model.named_modules():
        initialize_seeded_module(module, path, seed, std)
    check_filled(model, before)


def initialize_seeded_module(module: nn.Module, path: str, seed: int, std: float) -> None:
    """What `initialize_seeded` does with one module, whose path in the model is `path`."""
    if hasattr(module, "initialize_parameters"):  # its rule may draw too
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, path))
            initialize_module(module, std)
    else:
        initialize_module(module, std, lambda key: torch.Generator().manual_seed(seed_of(seed, f"{path}.{key}")))


def seed_of(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "little") >> 1


def _own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers of a module itself, those that are not kept in checkpoints too."""
    return dict([*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)])


def versions(model: nn.Module) -> dict[int, int]:
    """How often each parameter and buffer was written to, by its id."""
    return {id(tensor): tensor._version for module in model.modules() for tensor in _own_tensors(module).values()}


def check_filled(model: nn.Module, before: dict[int, int]) -> None:
    """Raise UserError where a tensor has not been written to since its version was that of `before`: it may hold anything."""
    for path, module in model.named_modules():
        if hasattr(module, "initialize_parameters"):
            continue
        left = [name for name, tensor in _own_tensors(module).items() if before.get(id(tensor)) == tensor._version]
        if left:
            raise UserError(
                f"no rule initialises a module of the model: {path or 'the model itself'}",
                got=f"{type(module).__name__}, whose {', '.join(left)} would hold what was in memory before",
                fix=f"give {type(module).__name__}, or the module around it, initialize_parameters(), which fills them in place",
            )  # fmt: skip
