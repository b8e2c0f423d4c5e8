"""The folder of an exported model: its parts are all loaded, or refused in one message, whatever is in its files.

safetensors only: nothing is unpickled. Code in the folder does not run (`imp_ds.foreign_code`).
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import logging as transformers_logging

from imp_ds import foreign_code
from imp_ds.errors import UserError
from imp_ds.families.imp.pretraining import ImpForPreTraining, TaskObjectives
from imp_ds.json_files import read_json
from imp_ds.modalities.modality import TEXT
from imp_ds.models.imp.configuration_imp import ImpConfig
from imp_ds.models.imp.modeling_imp import ImpModel, ImpPreTrainedModel
from imp_ds.models.imp.processing_imp import ImpProcessor
from imp_ds.objectives.registry import split_spec

CONFIG, PROCESSOR = "config.json", "processor_config.json"
_EXPORT = "export the run first: imp_ds export RUN OUT"
_AGAIN = "export it again: imp_ds export RUN OUT"
_SHOWN = 3  # names in a message


def exported_config(folder: Path) -> ImpConfig:
    """The configuration of an exported model's folder. Raises UserError for another folder, and for a file that is damaged."""
    what = "this is not the folder of an exported model"
    if not (folder / CONFIG).is_file():
        raise UserError(what, got=f"{folder} without {CONFIG}", fix=_EXPORT)
    found = read_json(folder / CONFIG, dict, _EXPORT)
    if found.get("model_type") != ImpConfig.model_type:
        raise UserError(what, got=f"{folder}: its {CONFIG} is of model_type {found.get('model_type')}", fix=_EXPORT)
    try:
        config = ImpConfig.from_dict(found)
        with torch.device("meta"):  # the objectives are read as they stand
            for entry in config.objectives.values():
                TaskObjectives(entry["objectives"], entry.get("reduction", "sum"), config)
        return config
    except UserError:
        raise
    except Exception as error:  # a value of another type may fail anywhere
        got = f"{folder / CONFIG}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise UserError("the configuration of the model cannot be used", got=got, fix=_AGAIN) from None


def load_processor(folder: Path) -> ImpProcessor:
    """The processor of an exported folder. Raises UserError where it is missing or damaged."""
    what = "the processor of the model cannot be loaded"
    return foreign_code.load(ImpProcessor, folder, what, fix=_AGAIN, local_files_only=True)


def load_weights(folder: Path, *, bare: bool = False) -> ImpPreTrainedModel:
    """The model of an exported folder, on the CPU, with its tasks' heads.

    bare: an ImpModel where the folder is of one, which has no heads.

    Raises UserError for a folder of something else, and where weights are damaged, missing, or of other shapes than its
    configuration says.
    """
    config = exported_config(folder)
    kind = ImpModel if bare and config.architectures == ["ImpModel"] else ImpForPreTraining
    _check_depth(config, folder)
    transformers_logging.disable_progress_bar()
    what = "the weights of the model cannot be loaded"
    model, found = foreign_code.load(kind, folder, what, fix=_AGAIN, local_files_only=True, output_loading_info=True)
    if missing := sorted(found["missing_keys"]):
        more = f" and {len(missing) - _SHOWN} more" if missing[_SHOWN:] else ""
        raise UserError("the model lacks weights", got=f"{folder}: {', '.join(missing[:_SHOWN])}{more}", fix=_AGAIN)
    return model


def trained_temperatures(model: ImpForPreTraining) -> dict[str, float]:
    """What a model's cosines with texts are divided by, by modality, in the first task that compares it with texts."""
    found, stored = {}, model.state_dict()
    for task, entry in sorted(model.config.objectives.items()):  # as `get_features` chooses them
        for position, spec in enumerate(entry["objectives"]):
            record, _ = split_spec(spec)
            for modality in model.config.modalities:
                value = None if modality == TEXT else record.trained_temperature(modality)
                if isinstance(value, str):
                    value = record.temperature_of(float(stored[f"objectives.{task}.parts.{position}.{value}"]))
                if value is not None:
                    found.setdefault(modality, value)
    return found


def _check_depth(config: ImpConfig, folder: Path) -> None:
    """Refuse a configuration of more layers than there are weights, which would only be found when all are built."""
    layers = set()
    for path in sorted(folder.glob("model*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                layers |= {name.partition("blocks.")[2].partition(".")[0] for name in file.keys() if "blocks." in name}
        except (OSError, SafetensorError) as error:
            raise UserError("the weights of the model cannot be loaded", got=f"{path}: {error}", fix=_AGAIN) from None
    if layers and config.num_hidden_layers > len(layers):
        got = f"{folder}: num_hidden_layers = {config.num_hidden_layers} in its {CONFIG}, {len(layers)} in its weights"
        raise UserError("the model lacks weights", got=got, fix=_AGAIN)
