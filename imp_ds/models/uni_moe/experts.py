"""Experts in a language model of Hugging Face: its feed-forwards become mixtures of SwiGLU experts, and its own ones become ours.

A decoder layer calls `mlp(hidden_states)` and wants hidden states back, so `ExpertFeedForward` stands where the dense
feed-forward or the sparse block stood, with the layer of `imp_ds.moe` in it: top-k, drop-free, so that a token's answer depends
on that token alone, however the text was cut into steps of decoding and whatever is beside it in the batch. What a mixture must
know of the tokens besides (padding, kinds) comes by `TokenFacts`, which all of a model share; what its router decided stays in
it until `router_losses` takes it.

Shapes: B batch, L tokens of an example, T = B * L flat tokens, D width, E experts, M kinds of tokens.
"""

import sys

import torch
from torch import nn
from transformers import initialization as init

from imp_ds.errors import UserError
from imp_ds.models.uni_moe.configuration_uni_moe import MEDIA
from imp_ds.moe.kernels.compute import linear_forward, rows_of_experts
from imp_ds.moe.layer import MoELayer
from imp_ds.moe.placement import placed_layers
from imp_ds.moe.routers.registry import token_choice
from imp_ds.moe.routing import RouterReport
from imp_ds.randomness import derive

KINDS = ("text", *MEDIA)  # of tokens; a kind's number is its place here
DENSE_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}


class TokenFacts:
    """What the mixtures of a model must know of the tokens of the pass that is to come. One object for all of them.

    valid_BL: bool, False at padding, which no expert takes; None: nothing is padding.
    kind_BL: int64, the place in KINDS of what a token stands for; None: all are text.
    collects: whether mixtures keep their decisions with the gradient, for `router_losses`, which ends that: what activation
        checkpointing computes again in the backward is not for it.
    key_B: the samples' random keys, int64, for the dropout of LoRA; None: nothing is dropped.
    """

    def __init__(self):
        self.valid_BL = self.kind_BL = self.key_B = None
        self.collects = True

    def set(
        self, valid_BL: torch.Tensor | None = None, kind_BL: torch.Tensor | None = None, key_B: torch.Tensor | None = None
    ) -> None:
        """To be called before each pass, with the tokens that go through the layers in it (one for each row in a step of
        decoding). They stay until the next pass: activation checkpointing needs them in the backward."""
        self.valid_BL, self.kind_BL, self.key_B, self.collects = valid_BL, kind_BL, key_B, True


class KindMaps(nn.Module):
    """A linear map of the tokens of each kind, identity at first: x [B, L, D] -> [B, L, D], in the type of x."""

    def __init__(self, width: int, kinds: int = len(KINDS)):
        super().__init__()
        self.kinds = kinds
        self.weight = nn.Parameter(torch.empty(kinds, width, width))

    def initialize_parameters(self) -> None:
        with torch.no_grad():
            init.copy_(self.weight, torch.eye(self.weight.shape[-1]).expand_as(self.weight))

    def forward(self, x_BLD: torch.Tensor, kind_BL: torch.Tensor | None) -> torch.Tensor:
        x_TD = x_BLD.flatten(0, 1)
        kind_T = x_TD.new_zeros(len(x_TD), dtype=torch.int64) if kind_BL is None else kind_BL.flatten()
        sorted_T, order_T = kind_T.sort(stable=True)
        count_M = torch.searchsorted(sorted_T, torch.arange(self.kinds + 1, device=kind_T.device)).diff()
        y_TD = linear_forward(x_TD[order_T], rows_of_experts(count_M), self.weight.transpose(1, 2))
        return torch.empty_like(y_TD).index_copy(0, order_T, y_TD).view_as(x_BLD)


class ExpertFeedForward(nn.Module):
    """A mixture of SwiGLU experts in the place of a decoder layer's feed-forward: x [B, L, D] -> [B, L, D]; zeros at padding.

    report, logits_BLE: what the router decided in the last pass, and from what; None before the first one.
    maps: what the gate alone sees the tokens through; None: as they are.
    """

    def __init__(
        self,
        width: int,
        feed_forward: int,
        num_experts: int,
        experts_per_token: int,
        *,
        facts: TokenFacts,
        renormalise: bool = True,
        modality_maps: bool = False,
    ):
        super().__init__()
        # a group is one example of any length: nothing competes, and balance is that of each example
        self.moe = MoELayer(
            width, feed_forward, num_experts, activation="swiglu", group_tokens=sys.maxsize, group_examples=1,
            **token_choice(experts_per_token, renormalise),
        )  # fmt: skip
        self.maps = KindMaps(width) if modality_maps else None
        self.facts = facts
        self.report: RouterReport | None = None
        self.logits_BLE: torch.Tensor | None = None

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        valid_BL = _matching(self.facts.valid_BL, x_BLD, "valid_BL")
        kind_BL = _matching(self.facts.kind_BL, x_BLD, "kind_BL")
        gate_BLD = None if self.maps is None else self.maps(x_BLD, kind_BL)
        y_BLD, report, logits_TE = self.moe(x_BLD, valid_BL, gate_BLD=gate_BLD, with_logits=True, key_T=self._key_T(x_BLD))
        if self.facts.collects:
            self.report, self.logits_BLE = report, logits_TE.view(*x_BLD.shape[:2], -1)
        return y_BLD

    def _key_T(self, x_BLD: torch.Tensor) -> torch.Tensor | None:
        """A random key for each token, where experts drop something."""
        lora = self.moe.experts.lora
        if self.facts.key_B is None or lora is None or not lora.drops:
            return None
        return derive(self.facts.key_B[:, None], torch.arange(x_BLD.shape[1], device=x_BLD.device)).flatten()

    def take(self) -> tuple[RouterReport, torch.Tensor]:
        """What was decided in the last pass and from what, with gradients; left here is the report without."""
        if self.report is None or self.logits_BLE is None:
            raise RuntimeError("no pass has been made since its router's losses were taken")
        report, logits_BLE = self.report, self.logits_BLE
        self.report, self.logits_BLE = RouterReport(*(value.detach() for value in report)), None
        return report, logits_BLE


def _matching(fact_BL: torch.Tensor | None, x_BLD: torch.Tensor, name: str) -> torch.Tensor | None:
    if fact_BL is not None and fact_BL.shape != x_BLD.shape[:2]:
        raise ValueError(f"TokenFacts.{name} is of {tuple(fact_BL.shape)} tokens, a pass over {tuple(x_BLD.shape[:2])} goes on")
    return fact_BL


def expert_feed_forwards(language_model: nn.Module) -> list[ExpertFeedForward]:
    """The mixtures of a model, in the order of its layers."""
    return [module for module in language_model.modules() if isinstance(module, ExpertFeedForward)]


def decoder_layers(language_model: nn.Module) -> list[nn.Module]:
    """Its blocks, in order, whatever its class calls them: the longest list of modules in its decoder."""
    lists = [module for module in language_model.get_decoder().modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len, default=()))


def replace_feed_forwards(language_model: nn.Module, config) -> TokenFacts:
    """Put mixtures of experts in the place of feed-forwards, in place; returns what all of them share.

    Of a dense language model (Llama, Qwen3, Mistral) those of `config.moe_layers` are replaced, of a sparse one (Mixtral,
    Qwen3-MoE) its sparse blocks, whatever `moe_layers` is. New modules lie where the old ones lay, in their type; their weights
    are to be filled, by initialisation or from a folder (`imp_ds.models.uni_moe.upcycling` has the names).

    config: num_experts (0: of a dense model nothing is replaced), num_experts_per_tok, norm_topk_prob, moe_layers,
        moe_intermediate_size (None: the feed-forward width that was there), modality_maps. What a sparse model knows of these
        itself must be the same.
    Raises UserError for a feed-forward that is not SwiGLU without biases, and for numbers that are not a sparse model's own.
    """
    facts, layers = TokenFacts(), decoder_layers(language_model)
    sparse = [index for index, layer in enumerate(layers) if hasattr(getattr(layer, "mlp", None), "experts")]
    if sparse:
        _check_sparse(language_model.config, layers[sparse[0]].mlp.experts, config)
        language_model.config.output_router_logits = False  # its own balance loss would look for its own routers
    if config.num_experts and not all(hasattr(layer, "mlp") for layer in layers):
        raise _of_another_kind(language_model.config.model_type)
    indices = sparse or (placed_layers(config.moe_layers, len(layers)) if config.num_experts else [])
    for index in indices:
        layers[index].mlp = _mixture_like(layers[index].mlp, language_model.config, config, facts)
    return facts


def _check_sparse(text_config, experts: nn.Module, config) -> None:
    own = {
        "num_experts": experts.num_experts, "num_experts_per_tok": text_config.num_experts_per_tok,
        "moe_intermediate_size": experts.down_proj.shape[2], "norm_topk_prob": getattr(text_config, "norm_topk_prob", True),
    }  # fmt: skip
    given = {name: getattr(config, name) for name in own}
    if given["moe_intermediate_size"] is None:
        given["moe_intermediate_size"] = own["moe_intermediate_size"]
    if wrong := [name for name in own if given[name] != own[name]]:
        raise UserError(
            f"the language model ({text_config.model_type}) has experts of its own",
            got=", ".join(f"{name} = {given[name]}" for name in wrong),
            allowed=", ".join(f"{name} = {own[name]}" for name in wrong),
        )  # fmt: skip


def _mixture_like(old: nn.Module, text_config, config, facts: TokenFacts) -> ExpertFeedForward:
    width = _feed_forward_width(old)
    if text_config.hidden_act not in ("silu", "swish"):
        raise UserError(
            "experts of a language model are SwiGLU feed-forwards, and its own are not",
            got=f"hidden_act = {text_config.hidden_act}", allowed="silu",
        )  # fmt: skip
    like = next(old.parameters())
    with torch.device(like.device):
        new = ExpertFeedForward(
            text_config.hidden_size, config.moe_intermediate_size or width, config.num_experts,
            config.num_experts_per_tok, facts=facts, renormalise=config.norm_topk_prob,
            modality_maps=config.modality_maps,
        )  # fmt: skip
    return new.to(like.dtype).train(old.training)


def _feed_forward_width(old: nn.Module) -> int:
    if hasattr(old, "experts"):
        return old.experts.down_proj.shape[2]
    if {name for name, _ in old.named_children()} != DENSE_PARTS or old.down_proj.bias is not None:
        raise _of_another_kind(type(old).__name__)
    return old.down_proj.in_features


def _of_another_kind(got: str) -> UserError:
    return UserError(
        "the language model's feed-forwards are of another kind than experts", got=got,
        allowed="gate_proj, up_proj and down_proj without biases, as those of Llama, Qwen3 and Mistral",
        fix="take such a language model, or --set model.num_experts=0",
    )  # fmt: skip
