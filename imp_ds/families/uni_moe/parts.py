"""The parts that a model is put together from: folders of models, or configurations alone."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

import imp_ds.models.imp  # noqa: F401  whose configuration AutoConfig then knows
from imp_ds import foreign_code
from imp_ds.errors import UserError

Part = str | dict[str, Any]  # a folder, or a configuration
LANGUAGE_MODEL = "model.language_model"  # the field of that part
_ALLOWED = 'a folder of a model, or its configuration: {"model_type": "llama", ...}'


def part_config(part: Part, field: str) -> PreTrainedConfig:
    """The configuration of a part; of a model of several parts that of its language model, where it is asked for, or of its
    encoder of images. field: names it in messages. Raises UserError for a folder that holds none, and for an unknown
    model_type."""
    if isinstance(part, str):
        if not Path(part).is_dir():
            raise UserError(f"{field} is not there", got=part, allowed=_ALLOWED, fix=f"--set {field}=FOLDER")
        config = foreign_code.load(AutoConfig, part, f"{field} cannot be read", allowed=_ALLOWED, local_files_only=True)
    else:
        fields = dict(part)
        try:
            config = AutoConfig.for_model(fields.pop("model_type", None), **fields)
        except Exception as error:  # ValueError, TypeError, and what the checks of each kind of model raise
            got = " ".join(str(error).split())[:300]
            raise UserError(f"{field} is no configuration", got=got, allowed=_ALLOWED) from None
    within = "vision_config" if field.endswith("_tower") else "text_config"
    return getattr(config, within, config)


def language_config(part: Part) -> PreTrainedConfig:
    """The configuration of a language model. Raises UserError as `part_config`, and for a model of another kind."""
    config = part_config(part, LANGUAGE_MODEL)
    if type(config) not in AutoModelForCausalLM._model_mapping:
        allowed = "a model of AutoModelForCausalLM: llama, qwen3, mistral, mixtral, qwen3_moe, ..."
        raise UserError(f"{LANGUAGE_MODEL} is no causal language model", got=config.model_type, allowed=allowed)
    return config


def load_part(folder: str, field: str) -> PreTrainedModel:
    """The encoder in a folder, with its weights, on the CPU, from safetensors alone. Raises UserError."""
    what = f"{field} cannot be loaded"
    model = foreign_code.load(AutoModel, folder, what, allowed=_ALLOWED, local_files_only=True, use_safetensors=True)
    return getattr(model, "vision_model", getattr(model, "encoder", model) if model.config.model_type == "whisper" else model)
