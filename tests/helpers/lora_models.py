"""The models of `helpers.uni_moe_models` with LoRA that changes something."""

import torch
from torch import nn

from helpers.uni_moe_models import uni_moe
from imp_ds.models.uni_moe import UniMoeForConditionalGeneration
from imp_ds.models.uni_moe.lora import CHANGES

EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
LORA = dict(r=4, lora_alpha=8, target_modules="all-linear", target_parameters=EXPERTS)


def with_lora(
    language: str = "llama", lora: dict | None = LORA, drawn: bool = True, **changes
) -> UniMoeForConditionalGeneration:
    """A fresh model; where `drawn`, its B are not 0."""
    model = uni_moe(language, lora=lora, **changes)
    if drawn:
        draw_changes(model)
    return model


def draw_changes(model: nn.Module) -> None:
    drawn = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if CHANGES in name and name.endswith("B"):
            parameter.data.normal_(std=0.3, generator=drawn)
