"""`train.init_from` with a model of transformers: what has a counterpart is copied, and a report names all of it."""

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from imp_ds.errors import UserError
from imp_ds.families.imp.pretrained.mapping import Counterpart, counterparts
from imp_ds.families.imp.pretrained.settings import as_options, check_shapes, exact_settings, lost
from imp_ds.families.imp.pretrained.tower import Tower, open_tower
from imp_ds.families.initial import InitialWeights
from imp_ds.families.stored_weights import check_tokenizer
from imp_ds.models.imp.modeling_imp import ImpPreTrainedModel


def load_tower(
    model: ImpPreTrainedModel, name: str | Path, tokenizer: PreTrainedTokenizerBase | None = None
) -> InitialWeights:
    """Copy the tower in a folder, or of a model on the hub, into a fresh dense encoder.

    Args:
        model: every parameter on a device, not yet wrapped by DeepSpeed.
        tokenizer: the run's; that of a tower that reads texts has to have the same vocabulary. None: not compared.

    Raises UserError for a model of another kind and for other shapes, with both numbers; the model is unchanged then.
    """
    tower, encoder = open_tower(name), model.base_model
    check_shapes(tower, encoder.config)
    if tower.modality == "text":
        _check_words(tower, encoder, tokenizer)
    _check_layers(tower, encoder.config.num_hidden_layers)
    rows = [_take(found, encoder) for found in counterparts(tower, encoder.config)]
    return _report(tower, model, rows)


def _check_words(tower: Tower, encoder: ImpPreTrainedModel, tokenizer) -> None:
    words = len(tower["words"])
    if words != encoder.config.vocab_size:
        raise UserError(
            "the model in train.init_from has another vocabulary", got=f"{encoder.config.vocab_size} tokens here, {words} there",
            fix=f"--set data.tokenizer={tower.folder}",
        )  # fmt: skip
    if tokenizer is not None:
        check_tokenizer(tokenizer, tower.folder)


def _check_layers(tower: Tower, layers: int) -> None:
    """All is there, before anything is copied."""
    names = [f"{part}.weight" for part in ("query", "key", "value", "out", "up", "down", "attention_norm", "feed_forward_norm")]
    around = ["norm.weight", "norm.bias", "positions", "patch.weight" if tower.modality == "vision" else "words"]
    every = [*around, *(f"layers.{index}.{name}" for index in range(layers) for name in names)]
    missing = [name for name in every if name not in tower]
    if missing:
        got = f"{tower.folder}: {', '.join(missing[:3])} ({len(missing)} in all)"
        raise UserError("the model in train.init_from lacks weights", got=got, fix="save it again with save_pretrained")


@torch.no_grad()
def _take(found: Counterpart, encoder: nn.Module) -> tuple:
    """Copy one into the encoder; a row of the report."""
    parameter = encoder.get_parameter(found.name)
    if parameter.shape != found.value.shape:
        raise UserError(
            "a weight of the model in train.init_from has another shape than its configuration says",
            got=f"{', '.join(found.theirs)}: {list(found.value.shape)} for {found.name}", allowed=str(list(parameter.shape)),
        )  # fmt: skip
    parameter.copy_(found.value)
    return found.name, list(parameter.shape), parameter.numel(), found.theirs, found.how


def _report(tower: Tower, model: ImpPreTrainedModel, rows: list[tuple]) -> InitialWeights:
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    prefix = next((f"{name}." for name, part in model.named_children() if part is model.base_model), "")
    taken = {prefix + name for name, *_ in rows}
    fresh = {name: size for name, size in sizes.items() if name not in taken}
    unused, missed = tower.unused(), lost(tower, model.config)
    matched = sum(size for _, _, size, *_ in rows)
    counts = f"{matched:,} parameters from it, {sum(fresh.values()):,} fresh, {sum(unused.values()):,} of its own unused"
    exact = "hidden states are equal to its own" if not missed else f"{len(missed)} differences"
    line = f"starting from {tower.folder} ({tower.model_type}): {counts}; {exact}"
    text = [f"# What the run starts from: {tower.folder} ({tower.model_type})", "", f"{counts}.", ""]
    text += ["## Differences", "", *(f"- {entry}" for entry in missed), "", "The settings that have none:", ""] if missed else []
    text += [f"    {as_options(exact_settings(tower, model.config.vision_patch[0]))}", ""] if missed else []
    text += ["## Taken", "", "| ours | shape | parameters | theirs | how |", "|---|---|---:|---|---|"]
    text += [f"| {name} | {shape} | {size:,} | {', '.join(keys) or '-'} | {how} |" for name, shape, size, keys, how in rows]
    for title, entries in (("Fresh: it has nothing like them", fresh), ("Its own, unused", unused)):
        text += ["", f"## {title}", "", "| name | parameters |", "|---|---:|"]
        text += [f"| {name} | {size:,} |" for name, size in entries.items()]
    return InitialWeights([line], {}, "\n".join(text) + "\n")
