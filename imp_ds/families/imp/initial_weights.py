"""`train.init_from`: a run starts from the weights of an exported model, on any number of ranks.

The encoder has to be the same, setting by setting and tensor by tensor, and so has the tokenizer. Heads (projections into the
common spaces, objectives) and deep prompts are taken where name and shape match, and are fresh where not. safetensors only:
nothing is unpickled.
"""

import json
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from imp_ds.errors import UserError
from imp_ds.families.imp.model_folder import exported_config
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.families.imp.upcycling import ENCODER_SETTINGS
from imp_ds.families.stored_weights import StoredWeights, check_tokenizer
from imp_ds.models.imp.configuration_imp import ImpConfig

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
        check_tokenizer(tokenizer, folder)
    return _stored(folder).copy_into(model, lambda name: name.startswith(_HEADS) or _PROMPTS in name)


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


def sources_of(model: ImpForPreTraining, folder: str | Path) -> dict[str, tuple[Path, str]]:
    """Parameter -> the file that `load_initial` copied it from, and its key there. Raises UserError as it does."""
    return _stored(Path(folder)).sources(model)


def stored_weight(folder: Path, name: str) -> torch.Tensor:
    """A parameter of the exported model in `folder`, by its name in ImpForPreTraining. Raises UserError when it is not there."""
    stored = _stored(folder)
    if name not in stored:
        raise UserError("the model lacks a weight", got=f"{folder}: {name}", fix="export it again")
    return stored[name]


def _stored(folder: Path) -> StoredWeights:
    """By the names in ImpForPreTraining. A folder of an ImpModel has no prefix in its names."""
    return StoredWeights(folder, lambda key: key if key.startswith(("imp.", "objectives.")) else f"imp.{key}")
