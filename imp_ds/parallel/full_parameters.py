"""What a parameter or a buffer is over all ranks, where experts are spread or ZeRO 3 leaves a parameter empty."""

from math import prod

import torch
from torch import nn

from imp_ds.moe.experts import ExpertWeights


def full_parameters(model: nn.Module) -> dict[str, tuple[tuple[int, ...], int]]:
    """Parameter name -> its shape with the experts of all ranks, and the flat position of the first element held here."""
    # ds_shape: ZeRO 3 leaves a parameter empty between its uses
    found = {name: (tuple(getattr(p, "ds_shape", p.shape)), 0) for name, p in model.named_parameters()}
    for path, layer in model.named_modules():
        experts = getattr(layer, "experts", None)
        if isinstance(experts, ExpertWeights):
            for name, _ in experts.named_parameters():  # what changes them too, which is stacked as they are
                key = f"{path}.experts.{name}"
                held, *rest = found[key][0]
                # a layer whose experts are spread over ranks has `num_experts` of all ranks
                found[key] = ((getattr(layer, "num_experts", held), *rest), experts.first * prod(rest))
    return found


def persistent_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Buffer name -> the buffer, of those that belong to a model's weights. Every rank holds the same values, also in layers
    whose experts are spread; a buffer that several modules share has the first one's name."""
    found = {}
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set and not any(buffer is other for other in found.values()):
                found[f"{path}.{name}" if path else name] = buffer
    return found
