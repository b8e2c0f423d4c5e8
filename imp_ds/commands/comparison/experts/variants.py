"""The variants of experts that Uni-MoE compares (arXiv 2405.11273, tables 7 to 9), and models without a mixture, as changes of
one recipe's run.

A variant is one change, or several with + between them: "top_1", "experts_8+balance". A set of them has a name too.
"""

import re

from imp_ds.config import RunConfig
from imp_ds.errors import UserError
from imp_ds.families.uni_moe.adapters.dense import as_wide, of_slot, specialists, without_experts
from imp_ds.families.uni_moe.parts import language_config
from imp_ds.families.uni_moe.settings import UniMoeSettings

BALANCE = 0.01  # where the recipe has no coefficient of its own
ALONE = "specialist_"
CHANGES = {
    "recipe": "the recipe as it is",
    "pretrained": "experts begin as the feed-forwards of the models in model.experts",
    "identical": "all experts begin as copies of the language model's own feed-forward",
    "no_balance": "without the load-balancing loss",
    "balance": f"with it: the recipe's coefficient, or {BALANCE:g}",
    "top_N": "a token takes its N likeliest experts, in training and when it is asked (the release draws the second one)",
    "experts_N": "N experts; of slots the first N, and from the first again where there are fewer",
    "first_half": "experts in the first half of the layers",
    "second_half": "in the second half",
    "interval": "in every second layer",
    "all": "in all layers",
    "dense": "no experts: the language model's own feed-forwards, with the same LoRA, or trained as experts are",
    "dense_wide": "dense, with LoRA of the rank with which it trains as many parameters",
    f"{ALONE}SLOT": "the model that a slot's expert began as, as it is, asked everything",
}
PAPER = (
    "top_1", "top_2", "experts_1", "experts_2", "experts_4", "first_half", "second_half", "interval", "all",
    "no_balance", "balance", "identical", "identical+balance", "experts_8", "experts_8+balance",
)  # fmt: skip
SETS = {"paper": "what its tables 7 to 9 compare", "gain": "the mixture, models without one, and each specialist alone"}


def variants_of(run: RunConfig, names: list[str]) -> list[str]:
    """The variants of these names, those of sets in their place, each once; without names all that a recipe can have."""
    mixtures = ["pretrained"] if _settings(run).experts else []
    gain = [*(mixtures or ["recipe"]), "identical", "dense", *(["dense_wide"] if run.model.lora else [])]
    gain += [f"{ALONE}{slot}" for slot in specialists(run)]
    sets = {"paper": [*mixtures, *PAPER], "gain": gain}
    return list(dict.fromkeys(one for name in names or ("recipe", *SETS) for one in sets.get(name, [name])))


def is_asked_alone(variant: str) -> bool:
    """Whether a variant is a model that is there already, and is not trained."""
    return variant.startswith(ALONE)


def varied(run: RunConfig, variant: str) -> RunConfig:
    """The run of a variant. Raises UserError for one that is unknown, or that the recipe cannot have."""
    name = f"{run.name}_{variant.replace('+', '_')}"
    if is_asked_alone(variant):
        run = of_slot(run, variant.removeprefix(ALONE))
    else:
        for change in variant.split("+"):
            run = _changed(run, change, variant)
    return RunConfig.model_validate(run.model_copy(update={"name": name}).model_dump())


def layers_of(model: UniMoeSettings) -> int:
    """Of the language model."""
    return language_config(model.language_model).num_hidden_layers


def _settings(run: RunConfig) -> UniMoeSettings:
    if not isinstance(run.model, UniMoeSettings):
        raise UserError("only runs of Uni-MoE have these experts", got=f"model.family = {run.model.family}", allowed="uni_moe")
    if not run.model.experts and not run.model.num_experts:
        raise UserError("the recipe has no experts to vary", got="model.num_experts = 0", fix="--set model.num_experts=4")
    return run.model


def _changed(run: RunConfig, change: str, variant: str) -> RunConfig:
    """The run with one change more."""
    _settings(run)
    if change in ("dense", "dense_wide"):
        dense = without_experts(run)
        return as_wide(dense, run) if change == "dense_wide" else dense
    return run.model_copy(update={"model": run.model.model_copy(update=_model_change(run.model, change, variant))})


def _model_change(model: UniMoeSettings, change: str, variant: str) -> dict:
    """What one change sets of the model."""
    number = re.fullmatch(r"(top|experts)_([1-9]\d*)", change)
    if number is not None and number[1] == "top":
        return {"experts_per_token": int(number[2])}
    if number is not None:
        return _counted(model, int(number[2]))
    layers = layers_of(model)
    placed = {
        "first_half": f"first:{layers // 2}", "second_half": f"last:{layers - layers // 2}", "interval": "every:2", "all": "all"
    }  # fmt: skip
    if change in placed:
        return {"moe_layers": placed[change]}
    if change == "pretrained" and not model.experts:
        raise UserError(
            f"{variant}: the recipe has no models that experts begin as", got="model.experts is empty", fix="--variant recipe"
        )
    if change == "identical":
        return {"experts": {}, "num_experts": len(model.experts) or model.num_experts}
    known = {
        "recipe": {}, "pretrained": {}, "no_balance": {"router_balance": 0.0},
        "balance": {"router_balance": model.router_balance or BALANCE},
    }  # fmt: skip
    if change not in known:
        allowed = f"{', '.join((*CHANGES, *SETS))}; several changes with + between them"
        raise UserError("unknown variant", got=variant, allowed=allowed)
    return known[change]


def _counted(model: UniMoeSettings, count: int) -> dict:
    """That many experts: of slots from the first on, as the release has it, where one model became several experts."""
    taken = {"experts_per_token": min(model.experts_per_token, count)}
    if not model.experts:
        return taken | {"num_experts": count}
    slots = list(model.experts.items())
    again = {f"{slots[n % len(slots)][0]}_{n // len(slots) + 1}": slots[n % len(slots)][1] for n in range(len(slots), count)}
    return taken | {"num_experts": 0, "experts": dict(slots[:count]) | again}
