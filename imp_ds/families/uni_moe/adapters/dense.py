"""The models without experts that a mixture is compared with: the same language model with its own feed-forwards, trained by LoRA
of the same rank, or of one that trains as many parameters; and the models that its experts began as."""

from fnmatch import fnmatchcase
from pathlib import Path

from torch import nn

from imp_ds.config import RunConfig
from imp_ds.errors import UserError
from imp_ds.families import family_of
from imp_ds.families.trainable import is_trained
from imp_ds.families.uni_moe.settings import UniMoeSettings
from imp_ds.json_files import read_json
from imp_ds.models.uni_moe.lora import ALL_LINEAR, changed_layers, linear_layers
from imp_ds.moe.experts import Experts

_PROJECTIONS = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}  # a stack of experts -> the layer that it is copies of
_OF_EXPERTS = (
    "experts", "num_experts", "experts_per_token", "moe_layers", "expert_intermediate_size", "expert_noise", "router_balance",
    "router_z_loss", "router_l1", "router_kl", "expert_preferences", "modality_maps",
)  # fmt: skip


def without_experts(run: RunConfig) -> RunConfig:
    """The run with the language model's own feed-forwards. What is trained of experts, in full or by LoRA, is trained of the
    feed-forwards of the same layers, with the same rank. Raises UserError where that cannot be."""
    if run.model.adapter is not None:
        raise UserError("a dense model cannot start from the adapter of one with experts", got=run.model.adapter, fix="set lora")
    sparse = family_of(run).cost(run).model
    dense = _with_model(run, **_no_experts(), lora=None)
    if run.model.lora is not None:
        moved = [
            f"{path.removesuffix('.moe.experts')}.{_PROJECTIONS[own]}"
            for path, layer in changed_layers(sparse) if isinstance(layer, Experts) for own in layer.lora._modules
        ]  # fmt: skip
        targets = _targets(run.model.lora.target_modules, moved, sparse.uni_moe.language_model)
        dense = _with_model(dense, lora=run.model.lora.model_copy(update={"target_parameters": [], "target_modules": targets}))
    if run.train.trainable is None:
        return dense
    names = _names(dense)
    kept = [pattern for pattern in run.train.trainable if any(fnmatchcase(name, pattern) for name in names)]
    whole = {_of_dense(name) for name, _ in sparse.named_parameters() if is_trained(name, run.train.trainable)} & set(names)
    kept += sorted(name for name in whole if not is_trained(name, kept))
    return _with_trained(dense, kept)


def as_wide(dense: RunConfig, run: RunConfig) -> RunConfig:
    """`dense` with LoRA of the rank with which it trains as many parameters as `run`, or as nearly as can be; a change counts as
    much as before (lora_alpha / r). Raises UserError without LoRA."""
    if (lora := dense.model.lora) is None:
        raise UserError(
            "dense_wide: the recipe has no LoRA whose rank could be larger", got="model.lora is not set", fix="--variant dense"
        )
    here, wanted = trained_parameters(dense), trained_parameters(run)
    doubled = trained_parameters(_with_model(dense, lora=lora.model_copy(update={"r": 2 * lora.r})))
    if doubled == here:
        raise UserError("dense_wide: the recipe does not train its LoRA", got=dense.train.trainable, fix="--variant dense")
    rank = max(1, lora.r + round((wanted - here) / ((doubled - here) / lora.r)))
    return _with_model(dense, lora=lora.model_copy(update={"r": rank, "lora_alpha": lora.lora_alpha * rank / lora.r}))


def trained_parameters(run: RunConfig) -> int:
    """How many numbers a run trains."""
    return sum(n for name, n in family_of(run).cost(run).sizes().items() if is_trained(name, run.train.trainable))


def of_slot(run: RunConfig, slot: str) -> RunConfig:
    """The run of which the model of a slot could be: to be asked what `run` asks. Raises UserError for an unknown slot, and for a
    model that does not read all that the recipe's model reads."""
    if slot not in run.model.experts:
        allowed = ", ".join(run.model.experts) or "none: model.experts is empty"
        raise UserError("the recipe has no such slot of experts", got=slot, allowed=allowed)
    folder = run.model.experts[slot]
    if lacks := [kind for kind in run.model.towers if kind not in _reads(folder)]:
        raise UserError(
            f"specialist_{slot}: the model of the slot does not read all that the recipe's model reads",
            got=f"{folder}: no {', '.join(lacks)}", allowed=", ".join(specialists(run)) or "none",
        )  # fmt: skip
    return _with_trained(_with_model(run, **_no_experts(), lora=None, language_model=folder), None)


def specialists(run: RunConfig) -> list[str]:
    """The slots whose models read all that the recipe's model reads."""
    return [slot for slot, folder in run.model.experts.items() if set(run.model.towers) <= _reads(folder)]


def _reads(folder: str) -> set[str]:
    """The kinds of media that the model in a folder reads; none of a language model, and of one that is not there."""
    path = Path(folder) / "config.json"
    return set(read_json(path, dict).get("towers") or ()) if path.is_file() else set()


def _targets(targets: list[str] | str, moved: list[str], sparse: nn.Module) -> list[str] | str:
    """Target modules that are also the feed-forwards `moved`, by their paths in the module to train."""
    part = "uni_moe.language_model."
    paths = [path.removeprefix(part) for path in moved]
    if targets == ALL_LINEAR or not paths:
        return targets
    if isinstance(targets, str):
        return "|".join([f"({targets})", *(path.replace(".", r"\.") for path in paths)])
    short = []
    dense = [path for path, _ in linear_layers(sparse)]  # those of layers without experts
    for projection in dict.fromkeys(path.rpartition(".")[2] for path in paths):
        of_all = not any(path.endswith(f".{projection}") for path in dense)
        short += [projection] if of_all else [path for path in paths if path.endswith(f".{projection}")]
    return [*targets, *(target for target in short if target not in targets)]


def _no_experts() -> dict:
    """What the settings of experts are where there are none."""
    return {name: UniMoeSettings.model_fields[name].get_default(call_default_factory=True) for name in _OF_EXPERTS}


def _of_dense(name: str) -> str:
    """The parameter of the dense model that a stack of experts is copies of; of any other parameter ""."""
    path, _, own = name.rpartition(".moe.experts.")
    return f"{path}.{_PROJECTIONS[own]}.weight" if path and own in _PROJECTIONS else ""


def _names(run: RunConfig) -> list[str]:
    everything = _with_trained(run, None)
    return list(family_of(everything).cost(everything).sizes())


def _with_trained(run: RunConfig, patterns: list[str] | None) -> RunConfig:
    return run.model_copy(update={"train": run.train.model_copy(update={"trainable": patterns})})


def _with_model(run: RunConfig, **changes) -> RunConfig:
    return run.model_copy(update={"model": run.model.model_copy(update=changes)})
