"""The settings of an encoder that computes what a published tower computes, and what is lost where a recipe has others."""

import json

from imp_ds.errors import UserError
from imp_ds.families.imp.pretrained.tower import Tower, open_tower
from imp_ds.models.imp.configuration_imp import ImpConfig

# activation of the source -> ours, and by what the hidden layer is scaled for it: quick_gelu(x) = x sigmoid(1.702 x)
ACTIVATIONS = {
    "quick_gelu": ("silu", 1.702), "gelu": ("gelu", 1.0), "gelu_pytorch_tanh": ("gelu_pytorch_tanh", 1.0),
    "gelu_new": ("gelu_pytorch_tanh", 1.0), "gelu_fast": ("gelu_pytorch_tanh", 1.0), "silu": ("silu", 1.0),
    "swish": ("silu", 1.0),
}  # fmt: skip
# what has to be as the source has it; the others may differ, and something is lost then
_SHAPES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "qk_norm", "vision_patch")
_LOST = {
    "layer_norm_eps": "norms differ a little",
    "hidden_act": "the feed-forwards have another activation than their weights were trained with",
    "block_biases": "the biases of the blocks' norms and linear layers have no place",
    "vision_positions": "positions are fresh",
    "vision_registers": "the class token and registers are not those of the source",
    "vision_norm": "the embedding's norm is not that of the source",
    "text_positions": "positions are fresh",
}


def pretrained_settings(name: str, *, frames: int = 1, **changes) -> dict:
    """Fields of `ModelSettings` with which an encoder computes what the tower in a folder, or of a model on the hub, computes.

    Args:
        frames: of a patch; a still image meets their sum.
        changes: fields that are to be others.

    Raises UserError as `open_tower`.
    """
    return {**exact_settings(open_tower(name), frames), **changes}


def exact_settings(tower: Tower, frames: int = 1) -> dict:
    """`pretrained_settings` of an open tower."""
    config = tower.config
    if config.hidden_act not in ACTIVATIONS:
        what = "the model in train.init_from has an activation that no encoder here has"
        raise UserError(what, got=config.hidden_act, allowed=", ".join(ACTIVATIONS))
    found = dict(
        hidden_size=config.hidden_size, intermediate_size=tower.feed_forward, num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads, qk_norm=False, layer_norm_eps=config.layer_norm_eps,
        hidden_act=ACTIVATIONS[config.hidden_act][0], block_biases=True,
    )  # fmt: skip
    if tower.modality == "text":
        return found | dict(text_positions="table", text_max=tower.grid[0])
    patch, (rows, columns) = config.patch_size, tower.grid
    return found | dict(
        vision_patch=[frames, patch, patch], vision_max=[frames, rows * patch, columns * patch], vision_positions="table",
        vision_registers=tower.registers, vision_norm="embedding_norm.weight" in tower,
    )  # fmt: skip


def check_shapes(tower: Tower, config: ImpConfig) -> None:
    """Raise UserError, with both numbers and the settings that would do, unless the tower's weights fit into such an encoder."""
    folder, wanted = tower.folder, exact_settings(tower, config.vision_patch[0])
    if config.num_experts or config.merged_conditions:
        got = f"{folder}, of which every layer is dense, and model.num_experts = {config.num_experts}"
        fix = "--set model.num_experts=0 for the first run, and give that experts: imp_ds upcycle RUN OUT --num_experts N"
        raise UserError("only a dense encoder starts from such a model", got=got, fix=fix)
    layers = config.num_hidden_layers
    bad = [n for n in _SHAPES if n in wanted and getattr(config, n) != wanted[n] and n != "num_hidden_layers"]
    bad += ["num_hidden_layers"] if layers > wanted["num_hidden_layers"] else []
    if not bad:
        return
    got = "; ".join(f"model.{name} = {getattr(config, name)} here, {wanted[name]} there" for name in bad)
    what = "the model in train.init_from has other shapes than the encoder"
    raise UserError(what, got=f"{folder}: {got}", allowed="fewer layers than there, else the same", fix=as_options(wanted))


def lost(tower: Tower, config: ImpConfig) -> list[str]:
    """What an encoder of this configuration cannot take over, line by line; empty where it computes the same."""
    wanted = exact_settings(tower, config.vision_patch[0])
    lines = [
        f"model.{name} = {getattr(config, name)}, {value} there: {_LOST[name]}"
        for name, value in wanted.items() if name in _LOST and getattr(config, name) != value
    ]  # fmt: skip
    if config.num_hidden_layers < wanted["num_hidden_layers"]:
        lines.append(f"the first {config.num_hidden_layers} of {wanted['num_hidden_layers']} layers are taken")
    if tower.model_type.startswith("clip_text"):
        lines.append("its texts were read from left to right, a token seeing those before it; here all tokens see each other")
    if tower.model_type.startswith("siglip2_vision") or tower.model_type == "siglip2":
        lines.append("images of another grid than the table's: it resizes with antialiasing, which matters for smaller grids")
    if tower.assumed_pixels:
        lines.append(f"no preprocessor_config.json: pixels are normalised by the mean {tower.mean} and the spread {tower.std}")
    return lines


def as_options(settings: dict) -> str:
    return " ".join(f"--set 'model.{name}={json.dumps(value)}'" for name, value in settings.items())
