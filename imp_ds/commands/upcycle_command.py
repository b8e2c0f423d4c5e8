"""`imp_ds upcycle DENSE OUT`: an exported dense model becomes an exported model with experts."""

import tempfile
from pathlib import Path

from huggingface_hub import ModelCardData
from transformers import PreTrainedModel

from imp_ds.config import FILE_NAME, RunConfig
from imp_ds.families.imp.model_folder import PROCESSOR, load_processor, load_weights
from imp_ds.families.imp.upcycling import upcycle
from imp_ds.train.staged_folder import staged_folder

_CARD = """\
# {name}

Upcycled from the dense model `{dense}` (sparse upcycling, [arXiv 2212.05055](https://arxiv.org/abs/2212.05055)): {became},
{made}; noise {noise:g}, seed {seed}. All other weights are the dense model's, the routers are new. It has not been trained since,
and its scores have not been measured. Start a run from it with `--set train.init_from=FOLDER`.
"""


def upcycle_folder(model: Path, out: Path, *, slices: int = 1, noise: float = 0.0, seed: int = 0, **settings) -> Path:
    """Write the upcycled model, its processor, run configuration and model card to the folder `out`.

    Args:
        model: a folder with an exported dense model, or the output folder of a run, whose newest complete checkpoint is taken.
        out: a new or empty folder; written beside itself first, so it is complete or absent.
        slices, noise, seed, settings: as `imp_ds.families.imp.upcycling.upcycle` takes them; a setting that is None is left out.

    Raises UserError for a folder that holds no dense model, what `upcycle` refuses, and an `out` that cannot be written.
    """
    model, out = Path(model), Path(out)
    settings = {name: value for name, value in settings.items() if value is not None}
    with staged_folder(out, "upcycled model") as staging:
        with tempfile.TemporaryDirectory(prefix="export-", dir=staging) as scratch:
            folder = _exported(model, Path(scratch) / "dense")
            sparse = upcycle(load_weights(folder, bare=True), slices=slices, noise=noise, seed=seed, **settings)
            _write(staging, folder, sparse, settings)
        made = "each a copy of it" if slices == 1 else f"each one of {slices} slices of it"
        _write_card(
            staging, sparse.config, name=out.resolve().name, dense=model.resolve().name, made=made, noise=noise, seed=seed
        )
    return out


def layers(text: str | None) -> str | list[int] | None:
    """The value of --moe_layers for ImpConfig: indices with commas between them are a list."""
    indices = (text or "").split(",")
    return [int(index) for index in indices] if all(index.isdigit() for index in indices) else text


def _exported(model: Path, scratch: Path) -> Path:
    """The folder itself, or an export of the run that it is."""
    if (model / FILE_NAME).is_file() and not (model / "config.json").exists():
        # needs DeepSpeed, which an exported model does without
        from imp_ds.commands.export import export

        return export(model, scratch)
    return model


def _write(staging: Path, folder: Path, sparse: PreTrainedModel, settings: dict) -> None:
    sparse.save_pretrained(staging)
    if (folder / PROCESSOR).is_file():
        load_processor(folder).save_pretrained(staging)
    if (folder / FILE_NAME).is_file():
        run = RunConfig.load(folder)
        # so that a run of this configuration builds this model
        for name in sorted({*settings, "moe_layers", "expert_intermediate_size", "expert_activation", "qk_norm"}):
            setattr(run.model, name, getattr(sparse.config, name))
        run.save(staging)


def _write_card(staging: Path, config, *, name: str, **facts) -> None:
    tags = ["imp", "multimodal", "deepspeed", "mixture-of-experts"]
    data = ModelCardData(library_name="transformers", pipeline_tag="feature-extraction", model_name=name, tags=tags)
    layers = f"layers {', '.join(map(str, config.moe_layer_indices))} (of {config.num_hidden_layers}, from 0)"
    became = f"the feed-forward of {layers} became {config.num_experts} experts of width {config.expert_intermediate_size}"
    if config.conditional_linears:
        linears = ", ".join(config.conditional_linears)
        became = f"each of the linear layers {linears} of {layers} became {config.num_experts} experts"
    text = _CARD.format(name=name, became=became, **facts)
    (staging / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n\n{text}", encoding="utf-8")
    for path in staging.iterdir():
        path.chmod(0o644)  # safetensors writes for the owner alone
