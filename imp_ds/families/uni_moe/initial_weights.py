"""What a run of Uni-MoE starts from: the weights of its parts' folders, and fresh ones for the rest."""

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from imp_ds.errors import UserError
from imp_ds.families.uni_moe.adapters.weights import AdapterWeights, load_others
from imp_ds.families.uni_moe.base_folder import BaseFolder
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
    if settings.adapter is not None:
        lines += load_others(settings.adapter, model)
    sources = {}
    for field, (kind, folder) in settings.connector_starts().items():
        sources |= _load_connector(model, kind, folder, field)
        lines.append(f"connector of {kind}: {Path(folder)}")
    if settings.adapter is not None and isinstance(settings.language_model, dict):  # else it arrives with the base
        base = settings.language_model
        AdapterWeights(settings.adapter, base, model.language_model, model.config.num_experts).copy_into(model.language_model)
        lines.append(f"LoRA: {settings.adapter}")
    return lines, sources


def _load_connector(model: UniMoeForConditionalGeneration, kind: str, folder: str, field: str) -> dict[str, tuple[Path, str]]:
    """Copy the connector of that kind of media from an exported model; where each of its parameters came from."""
    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"{field} is not there", got=folder, allowed="a folder of an exported model", fix=f"--set {field}=FOLDER")
    stored, prefix, sources = BaseFolder(folder, field, within=None), f"connectors.{kind}.", {}
    held = {name for name in stored.places if name.startswith(prefix)}
    if not held:
        raise UserError(f"{field}: the model there has no connector of {kind}", got=folder, fix="name one that reads such media")
    for name, parameter in model.connectors[kind].named_parameters():
        key = prefix + name
        if key not in stored or stored.shape(key) != tuple(parameter.shape):
            found = list(stored.shape(key)) if key in stored else "not there"
            raise UserError(
                f"{field}: the connector of {kind} is of another kind or width there", got=f"{folder}: {key}: {found}",
                allowed=list(parameter.shape), fix=f"set model.{kind}_connector as that model's run does",
            )  # fmt: skip
        parameter.copy_(stored.read(key))
        sources[f"uni_moe.{key}"] = stored.places[key]
    stored.close()
    return sources
