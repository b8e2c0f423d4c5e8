"""What mteb is told of a model: the fields of its ModelMeta, from an exported folder."""

import hashlib
from pathlib import Path

from transformers import PreTrainedModel

from imp_ds.modalities.modality import get_modality

_READ = ("config.json", "processor_config.json", "tokenizer.json")


def folder_hash(folder: Path) -> str:
    """A hash of what a model computes with: weights, configuration, processor and tokenizer; another file changes nothing."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *(folder / name for name in _READ)]):
        if path.is_file():
            with path.open("rb") as file:
                digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def model_meta(model: PreTrainedModel, folder: Path, revision: str | None, width: int):
    """mteb's ModelMeta of an exported model, whose vectors have `width` numbers."""
    from mteb.models import ModelMeta

    parameters = sum(parameter.numel() for parameter in model.parameters())
    kinds = [kind for modality in model.config.modalities for kind in get_modality(modality).item_kinds]
    return ModelMeta(
        loader=None, name=f"imp_ds/{folder.resolve().name}", revision=revision or folder_hash(folder)[:16], release_date=None,
        languages=None, n_parameters=parameters, memory_usage_mb=parameters * 4 / 2**20, max_tokens=model.config.text_max,
        embed_dim=width, license=None, open_weights=True, public_training_code=None, public_training_data=None,
        framework=["PyTorch", "Transformers"], similarity_fn_name="cosine", use_instructions=False, training_datasets=None,
        modalities=kinds,
    )  # fmt: skip
