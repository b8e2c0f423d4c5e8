"""`train.init_from`: a run starts from the weights of an exported model, on any number of ranks.

The encoder has to be the same, setting by setting and tensor by tensor, and so has the tokenizer. Heads (projections into the
common spaces, objectives) and deep prompts are taken where name and shape match, and are fresh where not. safetensors only:
nothing is unpickled.
"""

import json
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerBase

from imp_ds.errors import UserError
from imp_ds.families.imp.model_folder import exported_config
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.families.imp.upcycling import ENCODER_SETTINGS
from imp_ds.modalities.text.tokenizers import load_tokenizer
from imp_ds.models.imp.configuration_imp import ImpConfig
from imp_ds.parallel.full_parameters import full_parameters, persistent_buffers

# "moe_layer_indices" is compared, and called by the name of its setting
_SETTINGS = (
    *ENCODER_SETTINGS, "num_experts", "moe_layer_indices", "expert_intermediate_size", "expert_activation", "gate",
    "conditional_linears", "share_decisions", "gate_tasks",
)  # fmt: skip
_HEADS = ("imp.projections.", "imp.likelihood.", "objectives.")
_PROMPTS = ".attention.prompts."


def load_initial(model: ImpForPreTraining, folder: str | Path, tokenizer: PreTrainedTokenizerBase | None = None) -> list[str]:
    """Copy the weights of the exported model in `folder` into a fresh model, which may hold a part of the experts only.

    Args:
        model: every parameter on a device, not yet wrapped by DeepSpeed.
        tokenizer: the run's; the exported model's has to have the same vocabulary. None: not compared.

    Returns three lines that say what was loaded, what stays fresh and what was left over. Raises UserError when the folder
    holds no model, or one whose encoder or tokenizer differs; the model is unchanged then.
    """
    folder = Path(folder)
    check_encoder(exported_config(folder), model.config, folder)
    if tokenizer is not None:
        _check_tokenizer(tokenizer, folder)
    try:
        return _load(model, folder, _stored(folder))
    except SafetensorError as error:
        raise UserError("the weights of train.init_from cannot be read", got=f"{folder}: {error}") from None


def check_encoder(source: ImpConfig, target: ImpConfig, folder: Path) -> None:
    """Raise UserError, naming the settings, unless both configurations are of encoders with the same parameters."""
    if source.merged_conditions != target.merged_conditions and source.merged_conditions:
        raise UserError(
            "train.init_from holds a merged model: its experts are no more, and training goes on with experts", got=folder,
            fix="export the run without --merge, and start from that",
        )  # fmt: skip
    differing = [name for name in _SETTINGS if getattr(source, name) != getattr(target, name)]
    if not differing:
        return
    names = {name: "moe_layers" if name == "moe_layer_indices" else name for name in differing}
    values = [f"model.{names[n]} = {getattr(target, n)} here, {getattr(source, n)} there" for n in differing]
    sets = [f"model.{names[n]}={json.dumps(getattr(source, n))}" for n in differing if n != "vocab_size"]
    sets += [f"data.tokenizer={folder}"] if "vocab_size" in differing else []
    fix = " ".join(f"--set '{setting}'" for setting in sets)
    if target.num_experts and not source.num_experts:
        fix = f"give it experts first: imp_ds upcycle {folder} OUT --num_experts {target.num_experts}"
    raise UserError("train.init_from holds another encoder", got=f"{folder}: " + "; ".join(values), fix=fix)


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    if (folder / "tokenizer_config.json").is_file() and load_tokenizer(str(folder)).get_vocab() != tokenizer.get_vocab():
        raise UserError(
            "the run's tokenizer is not that of train.init_from: its words would get other words' weights",
            got=folder, fix=f"--set data.tokenizer={folder}",
        )  # fmt: skip


def sources_of(model: ImpForPreTraining, folder: str | Path) -> dict[str, tuple[Path, str]]:
    """Parameter -> the file that `load_initial` copied it from, and its key there. Raises UserError as it does."""
    stored, full_shapes = _stored(Path(folder)), full_parameters(model)
    taken = [name for name, (shape, _) in full_shapes.items() if _fits(stored, name, shape)]
    return {name: (stored[name][2], stored[name][1]) for name in taken}


def stored_weight(folder: Path, name: str) -> torch.Tensor:
    """A parameter of the exported model in `folder`, by its name in ImpForPreTraining. Raises UserError when it is not there."""
    stored = _stored(folder)
    if name not in stored:
        raise UserError("the model lacks a weight", got=f"{folder}: {name}", fix="export it again")
    return _view(stored[name])[:]


def _stored(folder: Path) -> dict[str, tuple]:
    """Name in ImpForPreTraining -> (open file, key, path of the file). A folder of an ImpModel has no prefix in its names."""
    found = {}
    for path in sorted(folder.glob("model*.safetensors")):
        try:
            file = safe_open(path, "pt")
        except (OSError, SafetensorError) as error:
            raise UserError("the weights of train.init_from cannot be read", got=f"{path}: {error}") from None
        found |= {key if key.startswith(("imp.", "objectives.")) else f"imp.{key}": (file, key, path) for key in file.keys()}
    if not found:
        raise UserError("train.init_from holds no weights", got=folder, allowed="a folder with model.safetensors")
    return found


@torch.no_grad()
def _load(model: ImpForPreTraining, folder: Path, stored: dict[str, tuple]) -> list[str]:
    full_shapes, loaded, fresh = full_parameters(model), [], []
    for name, (shape, _) in full_shapes.items():
        if _fits(stored, name, shape):
            loaded.append(name)
        elif name.startswith(_HEADS) or _PROMPTS in name:
            fresh.append(name)
        else:
            raise UserError(
                "a parameter of the encoder is not in train.init_from, or of another shape", got=f"{folder}: {name}",
                allowed=f"shape {list(shape)}", fix="export that model again; its weights do not fit its config.json",
            )  # fmt: skip
    for name in loaded:
        parameter, (shape, start) = model.get_parameter(name), full_shapes[name]
        first = start // prod(shape[1:])  # of the experts that are held here
        parameter.copy_(_view(stored[name])[first : first + len(parameter)])
    buffers = {name: b for name, b in persistent_buffers(model).items() if _fits(stored, name, tuple(b.shape))}
    for name, buffer in buffers.items():
        file, key, _ = stored[name]
        buffer.copy_(file.get_tensor(key))
    left = sorted(stored.keys() - set(loaded) - buffers.keys())
    return [
        f"starting from {folder}: {len(loaded)} parameters loaded",
        f"  fresh, not there in this shape: {_some(fresh)}",
        f"  left over: {_some(left)}",
    ]


def _fits(stored: dict[str, tuple], name: str, shape: tuple[int, ...]) -> bool:
    return name in stored and _view(stored[name]).get_shape() == list(shape)


def _view(place: tuple):
    """The tensor of `_stored`, not read yet."""
    file, key, _ = place
    return file.get_slice(key)


def _some(names: list[str]) -> str:
    return (", ".join(names[:5]) + (f", ... ({len(names)} in all)" if len(names) > 5 else "")) or "none"
