"""LoRA in a language model: which layers have low-rank changes, as settings with PEFT's names say it, and how they are merged.

A layer is named as PEFT names it. Linear layers: "q_proj" means every one whose name is that or ends with ".q_proj". Experts: by
the names of transformers' stacks ("experts.gate_up_proj", "experts.down_proj") or by ours ("experts.w1"), the ends of names too.
Where a layer of transformers holds gate and up in one stack, ours are two, each with a change of its own of rank r.
"""

import re
from collections.abc import Iterator

import torch
from pydantic import Field, PositiveFloat, PositiveInt, field_validator
from torch import nn

from imp_ds.errors import UserError
from imp_ds.models.uni_moe.experts import TokenFacts
from imp_ds.moe.experts import Experts
from imp_ds.moe.layer import MoELayer
from imp_ds.moe.low_rank import LowRank, LowRankExperts, LowRankStacks
from imp_ds.overrides import nearest
from imp_ds.records import Record

ALL_LINEAR = "all-linear"
CHANGES = ".lora."  # in the names of all parameters of low-rank changes
STACKS = {"w1": "gate_up_proj", "w3": "gate_up_proj", "w2": "down_proj"}  # ours -> that of transformers which holds it
_ROUTERS = ("gate", "router")  # last names of linear layers that choose experts, which "all-linear" leaves out


class LoraSettings(Record):
    """Low-rank changes of layers of the language model; names and meaning are those of PEFT's LoraConfig."""

    r: int = Field(8, ge=1, description="rank of a change")
    lora_alpha: float = Field(16, gt=0, description="a change is multiplied by lora_alpha / r")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="share of a change's inputs that training drops")
    target_modules: list[str] | str = Field(
        [], description='linear layers: ends of their names, such as "q_proj"; "all-linear"; or, as a text, a regular expression'
    )
    target_parameters: list[str] = Field(
        [],
        description='experts: ends of names of stacks, such as "experts.gate_up_proj", "experts.down_proj" or "experts.w1"',
    )
    rank_pattern: dict[str, PositiveInt] = Field({}, description="other ranks of some layers, by the ends of their names")
    alpha_pattern: dict[str, PositiveFloat] = Field({}, description="other lora_alpha of some layers, by the ends of their names")

    @field_validator("target_modules", "rank_pattern", "alpha_pattern")
    @classmethod
    def _are_expressions(cls, value):
        for pattern in [value] if isinstance(value, str) else value if isinstance(value, dict) else []:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"no regular expression: {pattern!r}: {error}") from None
        return value

    def of(self, names: list[str]) -> tuple[int, float]:
        """Rank and alpha of a layer that has these names."""
        return _of(self.rank_pattern, names, self.r), _of(self.alpha_pattern, names, self.lora_alpha)


def _of(patterns: dict, names: list[str], otherwise):
    """The value of the first pattern that one of the names ends with, as PEFT looks for it."""
    for pattern, value in patterns.items():
        if any(re.fullmatch(rf"(.*\.)?({pattern})", name) for name in names):
            return value
    return otherwise


class LoraLinear(nn.Linear):
    """A linear layer with a low-rank change `lora`: [B, L, I] -> [B, L, O]."""

    lora: LowRank
    facts: TokenFacts

    def forward(self, x_BLI: torch.Tensor) -> torch.Tensor:
        return super().forward(x_BLI) + self.lora(x_BLI, self.facts.key_B)


def add_lora(language_model: nn.Module, settings: LoraSettings, facts: TokenFacts) -> None:
    """Give layers of a causal language model their changes, in place, after its feed-forwards have been replaced. Their matrices
    are to be filled, by initialisation or from a folder.

    Raises UserError for settings without targets, and for a target that no layer has.
    """
    linears, stacks = dict(linear_layers(language_model)), list(stacks_of_experts(language_model))
    _check(settings, list(linears), [names for names, _ in stacks])
    site = 0
    for path, linear in linears.items():
        if _is_target(settings.target_modules, path):
            rank, alpha = settings.of([path])
            with torch.device(linear.weight.device):
                change = LowRank(linear.in_features, linear.out_features, rank, alpha, settings.lora_dropout, site)
            linear.__class__, linear.facts = LoraLinear, facts
            linear.lora = change.to(linear.weight.dtype).train(linear.training)
            site += 1
    changes: dict[Experts, dict[str, LowRankExperts]] = {}
    for names, (experts, own) in stacks:
        if any(_ends(name, target) for name in names for target in settings.target_parameters):
            changes.setdefault(experts, {})[own] = _change(experts, own, *settings.of(names), settings.lora_dropout, site)
            site += 1
    for experts, found in changes.items():
        experts.lora = LowRankStacks(found).train(experts.training)


def _change(experts: Experts, own: str, rank: int, alpha: float, rate: float, site: int) -> LowRankExperts:
    stack = experts.get_parameter(own)
    sizes = *stack.shape[1:], experts.num_experts, experts.first
    with torch.device(stack.device):
        return LowRankExperts(*sizes, rank=rank, alpha=alpha, rate=rate, site=site).to(stack.dtype)


def linear_layers(language_model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Linear layers of the decoder, by their names in the language model; the head is none of them."""
    inside = set(language_model.get_decoder().modules())
    for path, module in language_model.named_modules():
        if isinstance(module, nn.Linear) and module in inside:
            yield path, module


def stacks_of_experts(language_model: nn.Module) -> Iterator[tuple[list[str], tuple[Experts, str]]]:
    """Of each of our stacks of experts both names, that of transformers' stack and ours, the experts, and which stack it is."""
    for path, module in language_model.named_modules():
        if isinstance(module, MoELayer):
            theirs = path.removesuffix(".moe")
            for own, stock in STACKS.items():
                names = [f"{theirs}.experts.{stock}", f"{path}.experts.{own}"]
                yield names, (module.experts, own)


def _is_target(targets: list[str] | str, path: str) -> bool:
    if targets == ALL_LINEAR:
        return path.rpartition(".")[2] not in _ROUTERS
    if isinstance(targets, str):
        return re.fullmatch(targets, path) is not None
    return any(_ends(path, target) for target in targets)


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _check(settings: LoraSettings, linears: list[str], stacks: list[list[str]]) -> None:
    """Raise UserError for what means nothing."""
    if not settings.target_modules and not settings.target_parameters:
        fix = '--set model.lora.target_modules=all-linear, or target_parameters=["experts.gate_up_proj", "experts.down_proj"]'
        raise UserError("model.lora changes nothing", got="neither target_modules nor target_parameters", fix=fix)
    targets = settings.target_modules
    modules = [ALL_LINEAR, *dict.fromkeys(path.rpartition(".")[2] for path in linears)]
    for target in [targets] if isinstance(targets, str) else targets:
        if not any(_is_target(target if isinstance(targets, str) else [target], path) for path in linears):
            raise UserError(
                "model.lora.target_modules: the language model has no such linear layer", got=target,
                allowed=nearest(target, modules), fix="experts are named by target_parameters",
            )  # fmt: skip
    every = [name for names in stacks for name in names]
    for target in settings.target_parameters:
        if not any(_ends(name, target) for name in every):
            ends = dict.fromkeys(".".join(name.split(".")[-2:]) for name in every)
            raise UserError(
                "model.lora.target_parameters: the language model has no such experts", got=target,
                allowed=nearest(target, ends) if ends else "none: it has no experts",
                fix="linear layers are named by target_modules",
            )  # fmt: skip


def changed_layers(model: nn.Module) -> Iterator[tuple[str, LoraLinear | Experts]]:
    """The layers with a change, by their paths in the model: linear layers, and experts."""
    for path, module in model.named_modules():
        if isinstance(module, LoraLinear) or isinstance(module, Experts) and module.lora is not None:
            yield path, module


@torch.no_grad()
def merge_lora(model: nn.Module) -> None:
    """Add all changes to the weights that they change, in place: summed in float32, and rounded once to the weights' type. The
    model has no LoRA then, and computes what it did before. For a model with all of its experts, on one process."""
    for _, layer in changed_layers(model):
        if isinstance(layer, LoraLinear):
            layer.weight.copy_(layer.weight.float() + layer.lora.product())
            continue
        for name, change in layer.lora.named_children():
            stack = layer.get_parameter(name)
            for place in range(layer.num_experts):
                stack[place].copy_(stack[place].float() + change.product(place))
    remove_lora(model)


def remove_lora(model: nn.Module) -> None:
    """Take all changes away, in place: the model is its base."""
    for _, layer in list(changed_layers(model)):
        if isinstance(layer, LoraLinear):
            del layer.lora, layer.facts
            layer.__class__ = nn.Linear
        else:
            layer.lora = None
    for module in model.modules():
        if getattr(getattr(module, "config", None), "lora", None) is not None:
            module.config.lora = None
