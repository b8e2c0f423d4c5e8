"""Sparse upcycling: a dense encoder becomes one with experts (Komatsuzaki et al., 2023, arXiv 2212.05055).

The feed-forward of the chosen layers becomes a mixture of experts, or each of their conditional linear layers gets experts; the
routers are fresh, every other weight is the dense model's. With `slices` = 1 each expert is a copy of the dense feed-forward or
linear layer. With G slices, which feed-forwards alone have, experts are fine-grained (virtual groups of He et al., 2024, arXiv
2410.07524): the feed-forward width F is cut into G parts f_g of F / G, whose sum is the dense feed-forward; G consecutive experts
hold one copy of it, and share one row of the router, so that they are chosen together.

What becomes of the combine weights p_e: experts of one copy weigh the same, so where the weights of a token sum to 1, each
slice gets 1 / G of them, and the output matrix of a slice is multiplied by G: sum_e p_e G f_(e mod G)(x) = sum_g f_g(x). The
outputs are then the dense model's, whatever the router is: under expert choice (weights are not renormalised) with
capacity_factor = num_experts, under top-k (renormalised for k > 1) with experts_per_token a multiple of G and nothing dropped.
Expert choice with a smaller factor c starts from near-uniform probabilities: a token's weights sum to little more than
c / num_experts on average, the mixtures give that much less than the dense feed-forward, and training has to make up for it.
A copy stays a copy: nothing is scaled to hide that. To go on where the dense model was, upcycle to top-k.

Experts know the tanh form of gelu, and silu: of a dense model whose `hidden_act` is the exact gelu they are copies up to the
difference of the two forms, less than 5e-4 for each hidden value.

Shapes: D width, F dense feed-forward width.
"""

import inspect

import torch

from imp_ds.errors import UserError
from imp_ds.models.imp.configuration_imp import CONSTANT_GATES, ImpConfig
from imp_ds.models.imp.encoder.layers import FeedForward
from imp_ds.models.imp.modeling_imp import ImpPreTrainedModel
from imp_ds.models.initialization import initialize_seeded
from imp_ds.moe.experts import Experts

# what a model and the one that it starts from must have in common
ENCODER_SETTINGS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "qk_norm", "vision_patch", "vision_max",
    "num_channels", "audio_patch", "audio_max", "vocab_size", "text_max", "common_dim", "hidden_act", "block_biases",
    "layer_norm_eps", "vision_positions", "vision_registers", "vision_norm", "text_positions",
)  # fmt: skip


@torch.no_grad()
def upcycle(
    dense: ImpPreTrainedModel,
    *,
    num_experts: int,
    moe_layers: str | list[int] | None = None,
    slices: int = 1,
    noise: float = 0.0,
    seed: int = 0,
    **routing,
) -> ImpPreTrainedModel:
    """A new model of the class of `dense` (ImpModel or ImpForPreTraining), with experts made of its feed-forwards.

    Args:
        num_experts: experts of each MoE layer, a multiple of `slices`.
        moe_layers: as in ImpConfig; None takes the last half of the layers.
        slices: parts into which the dense feed-forward width is cut. The arithmetic of a token is that of the dense model with
            capacity_factor = slices (expert choice) or experts_per_token = slices (top-k).
        noise: standard deviation of Gaussian noise on the experts' matrices, in units of their own; drawn from (seed, layer,
            expert).
        seed: of the routers and the noise.
        routing: other fields of ImpConfig, for example gate, router or capacity_factor; not those of the encoder.

    Raises UserError for a model that has experts already, for counts that do not divide, and for fields that may not change.
    """
    config = sparse_config(dense.config, num_experts=num_experts, moe_layers=moe_layers, slices=slices, **routing)
    if noise < 0:
        raise UserError("the noise is negative", got=noise, allowed="0 or more, for example 0.01")
    with torch.device("meta"):
        sparse = type(dense)(config)
    sparse.to_empty(device="cpu")
    initialize_seeded(sparse, seed, config.initializer_range)
    kept = dict(dense.named_parameters())
    for name, parameter in sparse.named_parameters():
        if name in kept:
            parameter.copy_(kept[name])
    for index in config.moe_layer_indices:
        block, old = sparse.base_model.blocks[index], dense.base_model.blocks[index]
        for name in config.conditional_linears_of(index):
            for expert_IO in block.linear(name).experts.w:
                _set(expert_IO, old.linear(name).weight.T, noise)
        if not config.conditional_linears:
            _fill(block.feed_forward.experts, old.feed_forward, slices, noise)
            rows_ED = block.feed_forward.router.weight
            rows_ED.copy_(rows_ED[::slices].repeat_interleave(slices, 0))
    return sparse.to(dense.dtype).train(dense.training)


def _fill(experts: Experts, dense: FeedForward, slices: int, noise: float) -> None:
    """Every expert its slice."""
    width = experts.feed_forward
    for e in range(experts.num_experts):
        part = slice(e % slices * width, (e % slices + 1) * width)
        _set(experts.w1[e], dense.up.weight[part].T, noise)
        _set(experts.w2[e], slices * dense.down.weight[:, part].T, noise)


def _set(weight_IO: torch.Tensor, value_IO: torch.Tensor, noise: float) -> None:
    """An expert's fresh weights are standard normal numbers over sqrt(fan in), seeded: they serve as noise."""
    value_IO = value_IO.to(weight_IO)
    weight_IO.mul_(noise * value_IO.std() * weight_IO.shape[0] ** 0.5).add_(value_IO)


def sparse_config(dense: ImpConfig, *, num_experts: int, moe_layers=None, slices: int = 1, **routing) -> ImpConfig:
    """The configuration of the upcycled model; arguments and errors as in `upcycle`."""
    if dense.num_experts:
        raise UserError("the model has experts already", got=f"num_experts = {dense.num_experts}", allowed="a dense model")
    if dense.merged_conditions:
        raise UserError("a merged model has a copy for each condition, not one to start from", allowed="a dense model")
    if num_experts < 2:
        raise UserError("too few experts", got=f"num_experts = {num_experts}", allowed="2 or more")
    if slices < 1 or num_experts % slices or dense.intermediate_size % slices:
        raise UserError(
            "the experts cannot be slices of the dense feed-forward", got=f"slices = {slices}",
            allowed=f"a divisor of num_experts = {num_experts} and of intermediate_size = {dense.intermediate_size}",
        )  # fmt: skip
    linears = routing.get("conditional_linears") or routing.get("gate") in CONSTANT_GATES  # which have no activation of their own
    if slices > 1 and linears:
        what = "a slice is of a whole feed-forward, not of a linear layer"
        raise UserError(what, got=f"slices = {slices}", allowed="slices = 1")
    free = [n for n in inspect.signature(ImpConfig).parameters if n not in ENCODER_SETTINGS and n != "kwargs"]
    if wrong := sorted(routing.keys() - set(free)):
        raise UserError("upcycling cannot change these settings", got=", ".join(wrong), allowed=", ".join(free))
    activation = "silu" if dense.hidden_act == "silu" and not linears else "gelu"
    changes = dict(
        num_experts=num_experts, expert_intermediate_size=dense.intermediate_size // slices,
        moe_layers=f"last:{max(1, dense.num_hidden_layers // 2)}" if moe_layers is None else moe_layers,
    )  # fmt: skip
    # what a dense model has of routing means nothing, and would hold against the defaults of a gate
    kept = {name: value for name, value in dense.to_dict().items() if name not in ("router", "gate_tasks", "conditional_linears")}
    config = ImpConfig.from_dict({**kept, "expert_activation": activation, **routing, **changes})
    if config.expert_activation != activation:
        what = "a dense feed-forward has no gate to copy, and its own activation"
        raise UserError(what, got=config.expert_activation, allowed=activation)
    if slices == num_experts and not config.planned_router.takes_all:
        raise UserError(
            "a router cannot tell the slices of a single copy apart", got=f"slices = num_experts = {slices}",
            fix="more experts than slices, or full routing: capacity_factor or experts_per_token = num_experts",
        )  # fmt: skip
    return config
