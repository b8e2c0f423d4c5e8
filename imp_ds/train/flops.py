"""The work of one optimizer step of a task: the kernels that a rank runs, with their matrix products and their traffic.

Model FLOPs (Chowdhery et al., 2022, arXiv 2204.02311, appendix B: MFU) are those of matrix products alone, two for each
multiply-and-add: forward once and backward twice (gradients of both factors), or once where the input of a product needs no
gradient (raw patches). Attention counts its two L x L products. Experts count the rows that they really compute, so
capacity_factor and experts_per_token show. What gradient checkpointing computes again is not counted.

Traffic is counted in passes over a tensor, read or written, as an eager run without fusion makes them. It serves the
prediction of time (`imp_ds.train.plan_time`), not the FLOPs.

Shapes: b samples of a rank, L tokens of a sample, T = b * L tokens, D width, F feed-forward width, E experts, P values of a
patch, C width of a common space, N samples of all ranks.
"""

from dataclasses import dataclass

from imp_ds.config import AudioSettings
from imp_ds.models.imp.configuration_imp import ImpConfig
from imp_ds.moe.layer import examples_per_group
from imp_ds.moe.routing import capacity
from imp_ds.tasks import Task
from imp_ds.tokens import task_tokens

FLOAT32 = 4


@dataclass(frozen=True)
class Kernel:
    """All kernels of one kind and shape in a step of one rank, forward and backward together.

    kind: "product", "experts" (products batched by expert), "attention", "routing", "norm", "gelu" or "copy" (any other pass
    over a tensor); width: the narrow side of a product, 0 for others; flops: of products; bytes: read and written;
    calls: how often it is started, a forward with its backward being one; in_block: run again under gradient checkpointing.
    """

    kind: str
    width: int
    flops: float
    bytes: float
    calls: int
    in_block: bool = False


def step_flops(task: Task, config: ImpConfig, audio: AudioSettings, world: int) -> float:
    """Model FLOPs of one optimizer step of `task`, summed over `world` ranks."""
    return world * sum(kernel.flops for kernel in step_kernels(task, config, audio, world, FLOAT32))


def step_kernels(task: Task, config: ImpConfig, audio: AudioSettings, world: int, value_bytes: int) -> list[Kernel]:
    """The kernels of one rank in a step of `task` on `world` ranks, with values of `value_bytes` bytes."""
    samples = task.batch_size // world
    kernels = []
    for modality, length in task_tokens(task, config, audio).items():
        kernels += _encoder(modality, config, samples, length, value_bytes)
    for objective in task.objectives:
        if objective.kind == "classification":
            kernels.append(_product(samples, config.hidden_size, objective.num_classes, value_bytes))
        else:
            kernels += _contrastive(len(objective.pairs), config, samples, samples * world, value_bytes)
    return kernels


def expert_rows(config: ImpConfig, samples: int, length: int) -> int:
    """Rows that the experts of one MoE layer compute for `samples` samples of `length` tokens. Drop-free routing has a row for
    each choice, padding left out, which is taken as no padding here."""
    tokens = samples * length
    if config.router == "top_k" and not config.drop_tokens:
        return tokens * config.experts_per_token
    factor = config.capacity_factor * (config.experts_per_token if config.router == "top_k" else 1)
    group = length * examples_per_group(samples, length, config.group_tokens, config.group_examples)
    return tokens // group * config.num_experts * capacity(group, config.num_experts, factor)


def _product(rows: int, inward: int, outward: int, size: int, *, input_gradient: bool = True, in_block: bool = False) -> Kernel:
    """A linear map of `rows` rows: each of its products reads two matrices and writes the third."""
    times = 3 if input_gradient else 2
    flops, moved = 2 * rows * inward * outward, rows * inward + inward * outward + rows * outward
    return Kernel("product", min(inward, outward), times * flops, times * moved * size, 1, in_block)


def _passes(kind: str, values: float, calls: int, *, in_block: bool = False) -> Kernel:
    """`values` bytes in all, over `calls` kernels."""
    return Kernel(kind, 0, 0.0, values, calls, in_block)


def _encoder(modality: str, config: ImpConfig, samples: int, length: int, size: int) -> list[Kernel]:
    """One modality from its raw values to its pooled encoding."""
    tokens, width = samples * length, config.hidden_size
    layers, moe = config.num_hidden_layers, len(config.moe_layer_indices)
    kernels = _embedding(modality, config, tokens, size)
    kernels += [_product(tokens, width, width, size)] * 2  # before and after the blocks
    kernels += [_passes("norm", 5 * tokens * width * size, 1), _passes("copy", 6 * tokens * width * size, 4)]  # biases, mean
    kernels += _attention(config, samples, length, size) * layers
    kernels += _feed_forward(config, tokens, size) * (layers - moe)
    kernels += _experts(config, samples, length, size) * moe if moe else []
    return kernels


def _embedding(modality: str, config: ImpConfig, tokens: int, size: int) -> list[Kernel]:
    """Raw values to tokens; positions are looked up on each axis, summed and normed."""
    width = config.hidden_size
    if modality == "text":
        table = config.vocab_size * width * size  # the gradient of the words is dense: filled with zeros, then added to
        return [_passes("copy", table + 5 * tokens * width * size, 3)]
    frames, height, breadth = config.vision_patch
    if modality == "vision":
        values, axes = frames * height * breadth * config.num_channels, 3
    else:
        values, axes = config.audio_patch[0] * config.audio_patch[1], 2
    raw = _passes("copy", (5 * tokens * values if modality == "vision" else 0) * size, 3)
    places = _passes("copy", 7 * axes * tokens * width * size, 3 * axes)
    norm = _passes("norm", 5 * tokens * width * size, 1)
    return [_product(tokens, values, width, size, input_gradient=False), raw, places, norm]


def _attention(config: ImpConfig, samples: int, length: int, size: int) -> list[Kernel]:
    """Norm, queries, keys and values, attention, output, and the residual sum."""
    tokens, width = samples * length, config.hidden_size
    norms = 3 if config.qk_norm else 1
    # forward reads 3 and writes 1 tensor of the width, backward reads 5 and writes 3
    scores = Kernel("attention", 0, 12 * samples * length**2 * width, 12 * tokens * width * size, 1, True)
    return [
        _passes("norm", 5 * norms * tokens * width * size, norms, in_block=True),
        _product(tokens, width, 3 * width, size, in_block=True),
        scores,
        _product(tokens, width, width, size, in_block=True),
        # heads laid side by side again (2 + 2), three gradients joined to one (6), the residual's two sums (6)
        _passes("copy", 16 * tokens * width * size, 4, in_block=True),
    ]


def _feed_forward(config: ImpConfig, tokens: int, size: int) -> list[Kernel]:
    width, hidden = config.hidden_size, config.intermediate_size
    return [
        _passes("norm", 5 * tokens * width * size, 1, in_block=True),
        _product(tokens, width, hidden, size, in_block=True),
        _passes("gelu", 5 * tokens * hidden * size, 1, in_block=True),
        _product(tokens, hidden, width, size, in_block=True),
        _passes("copy", 6 * tokens * width * size, 2, in_block=True),
    ]


def _experts(config: ImpConfig, samples: int, length: int, size: int) -> list[Kernel]:
    """A MoE feed-forward, wherever its experts are: a rank computes as many rows as it sends."""
    tokens, width, hidden = samples * length, config.hidden_size, config.intermediate_size
    rows, matrices = expert_rows(config, samples, length), 3 if config.expert_activation == "geglu" else 2
    router = _product(tokens, width, config.num_experts, FLOAT32, in_block=True)
    moved = rows * (width + hidden) + config.num_experts * width * hidden
    return [
        _passes("norm", 5 * tokens * width * size, 1, in_block=True),
        Kernel("routing", 0, router.flops, router.bytes + (10 * rows + 4 * tokens) * width * size, 1, True),
        Kernel("experts", width, 6 * matrices * rows * width * hidden, 3 * matrices * moved * size, 1, True),
        _passes("gelu", (5 if matrices == 2 else 10) * rows * hidden * size, matrices - 1, in_block=True),
        _passes("copy", 6 * tokens * width * size, 2, in_block=True),
    ]


def _contrastive(pairs: int, config: ImpConfig, samples: int, everyone: int, size: int) -> list[Kernel]:
    """Both sides' projections, and each side's similarities with the other side of all ranks, in float32."""
    width, common = config.hidden_size, config.common_dim
    side = [
        _product(samples, width, common, size),
        _product(samples, common, common, size),
        _passes("gelu", 5 * samples * common * size, 1),
        _passes("norm", 5 * samples * common * size, 2),
        _product(samples, common, everyone, FLOAT32),
        _passes("copy", 20 * samples * everyone * FLOAT32, 8),
    ]
    return side * (2 * pairs)
