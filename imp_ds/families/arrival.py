"""A part of a model gets its weights module by module, so that it is never in memory as a whole before it is where it belongs.

The model lies on the meta device. A module's parameters are made, filled (from files, or afresh by the rule for its kind) and
handed on before those of the next one are made: ZeRO 3 leaves a rank its share of them and nothing else.
"""

import ctypes
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import nn

from imp_ds.models.initialization import check_filled

SETTLED = 1 << 25  # bytes after which memory that is free is given back


class Stored(Protocol):
    """What comes from files, by name in the part."""

    def __contains__(self, name: str) -> bool: ...

    def fill(self, name: str, parameter: torch.Tensor) -> None: ...


class Nothing:
    """Nothing comes from files."""

    def __contains__(self, name: str) -> bool:
        return False

    def fill(self, name: str, parameter: torch.Tensor) -> None:
        pass


class Arrival(NamedTuple):
    """How parameters arrive.

    dtype: name in the part -> the type that a parameter is to have.
    settle: called with the whole model's name of each parameter and the parameter, once it is filled. All ranks call it in one
    order. """

    dtype: Callable[[str], torch.dtype]
    settle: Callable[[str, nn.Parameter], None] = lambda name, parameter: None


@torch.no_grad()
def receive(part: nn.Module, prefix: str, stored: Stored, fresh: Callable[[str, nn.Module], None], arrival: Arrival) -> None:
    """Give all of `part`, which is on the meta device, its weights and buffers on the CPU, in place. Parameters that modules
    share stay shared, and keep what is noted on them.

    prefix: of the part's names in the whole model. stored: what is read. fresh: (path in the part, module) fills the module's own
        parameters and buffers, float32, afresh.
    """
    arrived: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # id on meta -> that parameter, and the real one
    settled = 0
    for path, module in part.named_modules():
        names = {name: f"{path}.{name}" if path else name for name, p in module._parameters.items() if p is not None}
        new = {name: full for name, full in names.items() if id(module._parameters[name]) not in arrived}
        drawn = any(full not in stored for full in new.values()) or any(b is not None for b in module._buffers.values())
        for name in names:
            meta = module._parameters[name]
            if name in new:
                dtype = torch.float32 if drawn and meta.is_floating_point() else arrival.dtype(new[name])
                arrived[id(meta)] = meta, _like(meta, dtype)
            module._parameters[name] = arrived[id(meta)][1]
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else torch.empty_like(buffer, device="cpu")
        made = [*(module._parameters[name] for name in new), *module.buffers(recurse=False)]
        before = {id(tensor): tensor._version for tensor in made}
        if drawn:
            fresh(path, module)
        for name, full in new.items():
            stored.fill(full, module._parameters[name])
        check_filled(module, before)
        for name, full in new.items():
            parameter = module._parameters[name]
            parameter.data = parameter.data.to(arrival.dtype(full))
            size = parameter.nbytes
            arrival.settle(f"{prefix}.{full}", parameter)
            settled += size
        if settled > SETTLED:
            settled = give_back_memory()


def give_back_memory() -> int:
    """Give free memory between what is used back to the system: glibc keeps what it once handed out, of blocks below 32 MiB.
    Returns how much is free then: 0 bytes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return 0


def _like(meta: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
    real = nn.Parameter(torch.empty_like(meta, device="cpu", dtype=dtype), requires_grad=meta.requires_grad)
    real.__dict__.update(meta.__dict__)
    return real
