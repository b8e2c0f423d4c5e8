"""A trained LoRA as an adapter's folder, and whether an adapter belongs to a base.

    adapter_config.json, adapter_model.safetensors   for PEFT, on the model that `base_model_name_or_path` names
    base/                                            that model, with its tokenizer, where it lies nowhere: its experts were made
                                                     of a dense one, or something else of it was trained
    other_weights.safetensors                        what else was trained, such as connectors, by our names
    base.json                                        which base it is: a fingerprint of its files
"""

import hashlib
from fnmatch import fnmatchcase
from pathlib import Path

from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from imp_ds.errors import UserError
from imp_ds.families.uni_moe.adapters.files import save_adapter
from imp_ds.families.uni_moe.train_module import UniMoeForTraining
from imp_ds.json_files import read_json
from imp_ds.models.uni_moe.experts import expert_feed_forwards
from imp_ds.models.uni_moe.lora import CHANGES, remove_lora
from imp_ds.models.uni_moe.stock_model import save_stock_model
from imp_ds.written_files import write_json

BASE, OTHERS = "base.json", "other_weights.safetensors"
_BLOCKS, _BLOCK = 64, 1 << 16  # of a file, which its fingerprint looks at


def write_adapter(run, model: UniMoeForTraining, tokenizer: PreTrainedTokenizerBase, folder: Path, out: Path) -> None:
    """Write the adapter of a trained model with all of its experts to `folder`, which will be `out`; the model has no LoRA
    afterwards. Raises UserError for a model without, and where no class of transformers is its language model."""
    language_model, base = model.uni_moe.language_model, run.model.language_model
    others = {name.removeprefix("uni_moe."): p.detach() for name, p in model.named_parameters() if _is_trained(run, name)}
    changed = any(name.startswith("language_model.") for name in others)
    written = changed or isinstance(base, dict) or bool(expert_feed_forwards(language_model)) and not _own_experts(language_model)
    save_adapter(language_model, folder, str(out / "base") if written else base)
    remove_lora(model)
    if written:
        save_stock_model(language_model, folder / "base")
        tokenizer.save_pretrained(folder / "base")
    if others:
        save_file({name: value.contiguous() for name, value in others.items()}, folder / OTHERS, metadata={"format": "pt"})
    write_json(folder / BASE, {"fingerprint": fingerprint(folder / "base" if written else Path(base))})


def _is_trained(run, name: str) -> bool:
    patterns = run.train.trainable
    return CHANGES not in name and (patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns))


def _own_experts(language_model) -> bool:
    return bool(getattr(language_model.config, "num_local_experts", 0) or getattr(language_model.config, "num_experts", 0))


def fingerprint(folder: Path) -> str:
    """Of the weights in a folder: sha256 of blocks spread over its safetensors files, which takes no time for any size."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name}/{size}/".encode())
        with path.open("rb") as file:
            for block in range(_BLOCKS):
                file.seek(max(0, size - _BLOCK) * block // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def check_base(adapter: Path, base: str | dict) -> None:
    """Raise UserError for an adapter that `write_adapter` wrote for another base; PEFT's own says nothing certain of it."""
    if not (adapter / BASE).is_file():
        return
    wanted = read_json(adapter / BASE, dict).get("fingerprint")
    if isinstance(base, dict) or fingerprint(Path(base)) != wanted:
        named = read_json(adapter / "adapter_config.json", dict).get("base_model_name_or_path")
        raise UserError(
            "the adapter was made for another model", got=f"model.adapter = {adapter}, model.language_model = {base}",
            allowed=f"the model that was {named} then", fix=f"--set model.language_model={named}",
        )  # fmt: skip
