"""Which parameters of a dense encoder a published tower gives, and what is computed of its tensors for them.

Our blocks have norms with biases, linear layers without, and a bias behind each branch (`ImpConfig.block_biases`). A norm's
weight and bias, and the bias of the linear layer behind it, go into that layer's matrix: the normed token x sums to 0, so the
direction of ones is empty, and a norm of weight 1 and bias s = 1 / sqrt(D) puts the number 1 into it:

    W (g x + b) + c  =  (W g + v s 1^T) (x + s 1)    with v = c + W b - s W g 1, since 1^T x = 0 and s^2 D = 1.

Gradient descent moves v as it would move a bias. LayerScale (DINOv2) goes into the matrix and the bias behind it; quick_gelu
(CLIP) is silu(1.702 x) / 1.702, whose factors go into the matrices on both sides; the mean and spread of the pixels go into the
patch embedding, since pixels here are in [-1, 1].

Shapes: D width, F feed-forward width, C channels, R and S rows and columns of a table of positions, O outputs, I inputs.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F

from imp_ds.families.imp.pretrained.settings import ACTIVATIONS
from imp_ds.families.imp.pretrained.tower import Tower
from imp_ds.models.imp.configuration_imp import ImpConfig


class Counterpart(NamedTuple):
    """A parameter of `ImpModel`, the tower's tensors that it is made of, by their names in the files, how, and its value."""

    name: str
    theirs: tuple[str, ...]
    how: str
    value: torch.Tensor


def counterparts(tower: Tower, config: ImpConfig) -> Iterator[Counterpart]:
    """All that the tower gives an encoder of `config`, which `check_shapes` has found to fit; one at a time."""
    yield from (_vision_embedding if tower.modality == "vision" else _text_embedding)(tower, config)
    eye_DD, zero_D = torch.eye(config.hidden_size), torch.zeros(config.hidden_size)
    for part in ("pre_encoder", "post_encoder"):
        yield Counterpart(f"{part}.{tower.modality}.weight", (), "identity: it has no such layer", eye_DD)
        yield Counterpart(f"{part}.{tower.modality}.bias", (), "zeros", zero_D)
    for index in range(config.num_hidden_layers):
        yield from _attention(tower, config, index)
        yield from _feed_forward(tower, config, index)
    for part in ("weight", "bias"):
        yield _copied(tower, f"norm.{part}", f"norm.{part}")


def _copied(tower: Tower, ours: str, theirs: str) -> Counterpart:
    return Counterpart(ours, (tower.key(theirs),) if theirs in tower else (), "copied", tower[theirs])


def _behind_norm(tower: Tower, config: ImpConfig, block: str, norm: str, linear: str, names: list[str], scale: float = 1.0):
    """A norm and the linear layers behind it, side by side as one matrix, times `scale`."""
    layer = f"layers.{block.split('.')[1]}"
    gain_D, shift_D = tower[f"{layer}.{norm}.weight"], tower[f"{layer}.{norm}.bias"] if config.block_biases else None
    weight_OD = scale * torch.cat([tower[f"{layer}.{name}.weight"] for name in names])
    norm_keys = tuple(tower.key(f"{layer}.{norm}.{part}") for part in ("weight", "bias"))
    keys = tuple(tower.key(f"{layer}.{name}.weight") for name in names)
    how = "copied" if len(names) == 1 else "side by side"
    how += f", times {scale:g}" if scale != 1 else ""
    if not config.block_biases:
        yield Counterpart(f"{block}.{norm}.weight", norm_keys[:1], "copied", gain_D)
        yield Counterpart(f"{block}.{linear}.weight", keys, how, weight_OD)
        return
    biases = [f"{layer}.{name}.bias" for name in names]
    parts = [tower[name] if name in tower else torch.zeros(len(weight_OD) // len(names)).double() for name in biases]
    bias_O, unit = scale * torch.cat(parts), weight_OD.shape[1] ** -0.5
    scaled_OD = weight_OD * gain_D
    carried_O = bias_O + weight_OD @ shift_D - unit * scaled_OD.sum(1)
    keys += tuple(tower.key(name) for name in biases if name in tower)
    how += ", with norm and biases"
    yield Counterpart(f"{block}.{norm}.weight", (), "ones: its own is in the matrix behind it", torch.ones_like(gain_D))
    yield Counterpart(f"{block}.{norm}.bias", (), "1 / sqrt(width), which carries the biases", torch.full_like(gain_D, unit))
    yield Counterpart(f"{block}.{linear}.weight", keys + norm_keys, how, scaled_OD + unit * carried_O[:, None])


def _branch_end(tower: Tower, config: ImpConfig, block: str, branch: str, linear: str, name: str, scale: float = 1.0):
    """The last linear layer of a branch, its LayerScale and its bias; `scale` is that of what enters it."""
    layer = f"layers.{block.split('.')[1]}"
    scale_name = f"{layer}.{branch}_scale"
    has_scale = scale_name in tower
    gain_D = tower[scale_name] if has_scale else torch.ones(config.hidden_size).double()
    more = (tower.key(scale_name),) if has_scale else ()
    how = ("times LayerScale" if has_scale else "copied") + (f", over {scale:g}" if scale != 1 else "")
    weight_DI = gain_D[:, None] * tower[f"{layer}.{name}.weight"] / scale
    yield Counterpart(f"{block}.{linear}.weight", (tower.key(f"{layer}.{name}.weight"), *more), how, weight_DI)
    bias = f"{layer}.{name}.bias"
    if config.block_biases and bias in tower:
        yield Counterpart(f"{block}.{branch}_bias.bias", (tower.key(bias), *more), how.split(", over")[0], gain_D * tower[bias])


def _attention(tower: Tower, config: ImpConfig, index: int) -> Iterator[Counterpart]:
    block = f"blocks.{index}"
    yield from _behind_norm(tower, config, block, "attention_norm", "attention.qkv", ["query", "key", "value"])
    yield from _branch_end(tower, config, block, "attention", "attention.out", "out")


def _feed_forward(tower: Tower, config: ImpConfig, index: int) -> Iterator[Counterpart]:
    block, (activation, scale) = f"blocks.{index}", ACTIVATIONS[tower.config.hidden_act]
    scale = scale if config.hidden_act == activation else 1.0
    yield from _behind_norm(tower, config, block, "feed_forward_norm", "feed_forward.up", ["up"], scale)
    yield from _branch_end(tower, config, block, "feed_forward", "feed_forward.down", "down", scale)


def _vision_embedding(tower: Tower, config: ImpConfig) -> Iterator[Counterpart]:
    here = "embeddings.vision"
    yield from _patches(tower, config, here)
    table_LD = tower["positions"].flatten(0, -2)
    first_D, table_LD = (table_LD[0], table_LD[1:]) if "class_token" in tower else (None, table_LD)
    buckets = [most // patch for most, patch in zip(config.vision_max, config.vision_patch)]
    if config.vision_positions == "table":
        how, table_DRS = "copied", table_LD.unflatten(0, tower.grid).permute(2, 0, 1)
        if tuple(buckets[1:]) != tower.grid:
            how = "resized from {} x {} to {} x {}, bicubic".format(*tower.grid, *buckets[1:])
            table_DRS = F.interpolate(table_DRS[None].float(), size=buckets[1:], mode="bicubic", align_corners=False)[0]
        key = (tower.key("positions"),)
        yield Counterpart(f"{here}.positions.cells.weight", key, how, table_DRS.flatten(1).T)
        zeros = torch.zeros(buckets[0], config.hidden_size)
        yield Counterpart(f"{here}.positions.steps.weight", (), "zeros: it knows no time", zeros)
    if config.vision_registers and config.vision_registers == tower.registers:
        parts, keys = [], []
        if first_D is not None:
            parts.append(tower["class_token"].flatten()[None] + first_D)
            keys += [tower.key("class_token"), tower.key("positions")]
        if "registers" in tower:
            parts.append(tower["registers"][0])
            keys.append(tower.key("registers"))
        how = "the class token with its position, registers"
        yield Counterpart(f"{here}.registers.weight", tuple(keys), how, torch.cat(parts))
    if config.vision_norm and "embedding_norm.weight" in tower:
        for part in ("weight", "bias"):
            yield _copied(tower, f"{here}.norm.{part}", f"embedding_norm.{part}")


def _patches(tower: Tower, config: ImpConfig, here: str) -> Iterator[Counterpart]:
    """The convolution as a linear layer of frames, rows, columns and channels: each frame gets its share of it."""
    frames, patch = config.vision_patch[0], config.vision_patch[1]
    weight = tower["patch.weight"]
    weight_DHWC = weight.permute(0, 2, 3, 1) if weight.dim() == 4 else weight.unflatten(1, (patch, patch, -1))
    mean_C, std_C = torch.tensor(tower.mean).double(), torch.tensor(tower.std).double()
    bias_D = (weight_DHWC * ((0.5 - mean_C) / std_C)).sum((1, 2, 3))
    keys = (tower.key("patch.weight"),)
    if "patch.bias" in tower:
        bias_D, bias_keys = bias_D + tower["patch.bias"], (tower.key("patch.bias"), *keys)
    else:
        bias_keys = keys
    weight_DP = (weight_DHWC * (0.5 / std_C)).flatten(1).repeat(1, frames) / frames
    how = "for pixels in [-1, 1]" + (f", a {frames}th for each frame" if frames > 1 else "")
    yield Counterpart(f"{here}.patch.weight", keys, how, weight_DP)
    yield Counterpart(f"{here}.patch.bias", bias_keys, "with what the mean of the pixels adds", bias_D)


def _text_embedding(tower: Tower, config: ImpConfig) -> Iterator[Counterpart]:
    yield _copied(tower, "embeddings.text.words.weight", "words")
    if config.text_positions != "table":
        return
    table_LD, most = tower["positions"], config.text_max
    how = "copied" if most == len(table_LD) else f"the first {most}, zeros after its {len(table_LD)}"
    table_LD = F.pad(table_LD[:most], (0, 0, 0, max(0, most - len(table_LD))))
    yield Counterpart("embeddings.text.positions.tables.0.weight", (tower.key("positions"),), how, table_LD)
