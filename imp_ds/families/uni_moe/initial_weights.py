"""What a run of Uni-MoE starts from: the weights of its parts' folders, and fresh ones for the rest."""

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from imp_ds.families.uni_moe.parts import load_part
from imp_ds.families.uni_moe.settings import UniMoeSettings
from imp_ds.models.initialization import seed_of
from imp_ds.models.uni_moe.modeling_uni_moe import UniMoeForConditionalGeneration
from imp_ds.moe.layer import MoELayer


def initialize_as_theirs(model: nn.Module, seed: int) -> None:
    """Fresh weights of the parts of transformers by their own rules, from (seed, name) alone; experts keep those of ours."""
    paths = {module: path for path, module in model.named_modules()}
    for part in model.uni_moe.parts():
        as_theirs(part, {module: paths[module] for module in part.modules()}, seed)


@torch.no_grad()
def as_theirs(part: PreTrainedModel, paths: dict[nn.Module, str], seed: int) -> None:
    """What `initialize_as_theirs` does with some modules of a part; each has its path in the whole model."""
    ours = {inner for layer in part.modules() if isinstance(layer, MoELayer) for inner in layer.modules()}
    with torch.random.fork_rng(devices=[]):
        for module, path in paths.items():
            if module not in ours:
                torch.manual_seed(seed_of(seed, path))
                part._init_weights(module)


@torch.no_grad()
def load_parts(settings: UniMoeSettings, model: UniMoeForConditionalGeneration) -> tuple[list[str], dict]:
    """Copy the weights of those parts that are folders. Returns lines that report it, and of parameters the file and key
    that they came from, where a checkpoint may refer to them there. Raises UserError."""
    lines, done = [], set()
    for kind, part in settings.towers.items():
        name = settings.tower_names()[kind]
        if isinstance(part, str) and name not in done:
            done.add(name)
            loaded = load_part(part, f"model.{kind}_tower")
            model.tower(kind).model.load_state_dict(loaded.state_dict())
            lines.append(f"{name} tower: {Path(part)}, {sum(p.numel() for p in loaded.parameters()):,} parameters")
    return lines, {}
