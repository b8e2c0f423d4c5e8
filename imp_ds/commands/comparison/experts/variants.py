"""The variants of experts that Uni-MoE compares (arXiv 2405.11273, tables 7 to 9), as changes of one recipe's run.

A variant is one change, or several with + between them: "top_1", "experts_8+balance".
"""

import re

from imp_ds.config import RunConfig
from imp_ds.errors import UserError
from imp_ds.families.uni_moe.parts import language_config
from imp_ds.families.uni_moe.settings import UniMoeSettings

BALANCE = 0.01  # where the recipe has no coefficient of its own
CHANGES = {
    "recipe": "the recipe as it is",
    "pretrained": "experts begin as the feed-forwards of the models in model.experts",
    "identical": "all experts begin as copies of the language model's own feed-forward",
    "no_balance": "without the load-balancing loss",
    "balance": f"with it: the recipe's coefficient, or {BALANCE:g}",
    "top_N": "a token takes N experts",
    "experts_N": "N experts; of slots the first N",
    "first_half": "experts in the first half of the layers",
    "second_half": "in the second half",
    "interval": "in every second layer",
    "all": "in all layers",
}
DEFAULT = (
    "recipe", "pretrained", "identical", "no_balance", "balance", "top_1", "top_2", "experts_2", "experts_4", "experts_8",
    "first_half", "second_half", "interval", "all",
)  # fmt: skip


def default_variants(run: RunConfig) -> list[str]:
    """Those of DEFAULT that a recipe can have."""
    slots = len(_settings(run).experts)
    impossible = {"pretrained"} if not slots else {f"experts_{n}" for n in (2, 4, 8) if n > slots}
    return [name for name in DEFAULT if name not in impossible]


def varied(run: RunConfig, variant: str) -> RunConfig:
    """The run of a variant. Raises UserError for one that is unknown, or that the recipe cannot have."""
    for change in variant.split("+"):
        settings = _changed(run, change, variant)
        run = run.model_copy(update={"model": run.model.model_copy(update=settings)})
    run = run.model_copy(update={"name": f"{run.name}_{variant.replace('+', '_')}"})
    return RunConfig.model_validate(run.model_dump())


def layers_of(model: UniMoeSettings) -> int:
    """Of the language model."""
    return language_config(model.language_model).num_hidden_layers


def _settings(run: RunConfig) -> UniMoeSettings:
    if not isinstance(run.model, UniMoeSettings):
        raise UserError("only runs of Uni-MoE have these experts", got=f"model.family = {run.model.family}", allowed="uni_moe")
    if not run.model.experts and not run.model.num_experts:
        raise UserError("the recipe has no experts to vary", got="model.num_experts = 0", fix="--set model.num_experts=4")
    return run.model


def _changed(run: RunConfig, change: str, variant: str) -> dict:
    """What one change sets of the model."""
    model = _settings(run)
    number = re.fullmatch(r"(top|experts)_([1-9]\d*)", change)
    if number is not None and number[1] == "top":
        return {"experts_per_token": int(number[2])}
    if number is not None:
        return _counted(model, int(number[2]), variant)
    layers = layers_of(model)
    placed = {
        "first_half": f"first:{layers // 2}", "second_half": f"last:{layers - layers // 2}", "interval": "every:2", "all": "all"
    }  # fmt: skip
    if change in placed:
        return {"moe_layers": placed[change]}
    if change == "pretrained" and not model.experts:
        raise UserError(
            f"{variant}: the recipe has no models that experts begin as", got="model.experts is empty",
            allowed=", ".join(default_variants(run)),
        )  # fmt: skip
    if change == "identical":
        return {"experts": {}, "num_experts": len(model.experts) or model.num_experts}
    known = {
        "recipe": {}, "pretrained": {}, "no_balance": {"router_balance": 0.0},
        "balance": {"router_balance": model.router_balance or BALANCE},
    }  # fmt: skip
    if change not in known:
        raise UserError("unknown variant", got=variant, allowed=f"{', '.join(CHANGES)}; several with + between them")
    return known[change]


def _counted(model: UniMoeSettings, count: int, variant: str) -> dict:
    taken = {"experts_per_token": min(model.experts_per_token, count)}
    if not model.experts:
        return taken | {"num_experts": count}
    if count > len(model.experts):
        fix = f"identical+{variant}: of copies there may be any number"
        raise UserError(f"{variant}: the recipe has fewer slots of experts", got=", ".join(model.experts), fix=fix)
    return taken | {"num_experts": 0, "experts": dict(list(model.experts.items())[:count])}
