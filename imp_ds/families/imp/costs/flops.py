"""The work of one optimizer step of a task: the kernels that a rank runs, with their matrix products and their traffic.

Model FLOPs (Chowdhery et al., 2022, arXiv 2204.02311, appendix B: MFU) are those of matrix products alone, two for each
multiply-and-add: forward once and backward twice (gradients of both factors), or once where the input of a product needs no
gradient (raw patches). Attention counts its two L x L products. Experts count the rows that they really compute, so
capacity_factor and experts_per_token show. What gradient checkpointing computes again is not counted.

Traffic serves the prediction of time (`imp_ds.planning.time`), not the FLOPs. What has experts is in `flops_experts`; `frozen`
leaves of all this what a run computes that trains a part of the model.

Shapes: b samples of a rank, L tokens of a sample, T = b * L tokens, D width, F feed-forward width, E experts, P values of a
patch, C width of a common space, N samples of all ranks, V words of the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace

from imp_ds.config import DataSettings
from imp_ds.costs import FLOAT32, Kernel, passes, product
from imp_ds.families.imp.costs.flops_experts import conditional_linear, linear_prefix, linear_widths, merge_experts, mixture
from imp_ds.families.imp.costs.tokens import task_candidates, task_sequences, task_tokens
from imp_ds.modalities.modality import TEXT, get_modality
from imp_ds.modalities.views import Views
from imp_ds.models.imp.configuration_imp import ImpConfig
from imp_ds.objectives.objective import StepShape
from imp_ds.tasks import Task


def step_flops(task: Task, config: ImpConfig, data: DataSettings, world: int) -> float:
    """Model FLOPs of one optimizer step of `task`, summed over `world` ranks."""
    return world * sum(kernel.flops for kernel in step_kernels(task, config, data, world, FLOAT32))


def rank_flops(task: Task, config: ImpConfig, data: DataSettings, world: int, alone: bool) -> float:
    """Those of one of the ranks; `alone`: it compares its own samples only."""
    if alone:
        task, world = task.model_copy(update={"batch_size": task.batch_size // world}), 1
    return step_flops(task, config, data, world) / world


def step_kernels(
    task: Task, config: ImpConfig, data: DataSettings, world: int, value_bytes: int, ep_size: int = 1
) -> list[Kernel]:
    """The kernels of one rank in a step of `task` on `world` ranks, of which `ep_size` share one set of experts, with values
    of `value_bytes` bytes."""
    samples = task.batch_size // world
    kernels = []
    lengths, sets, values = task_tokens(task, config, data), task_candidates(task, config), patch_values(task.views, config)
    for sequences in (*task_sequences(task, config, data).values(), *(candidates for candidates, _ in sets.values())):
        kernels += _encoder(sequences.segments, values, config, sequences.of_rank(world), value_bytes, ep_size)
    for candidates, objective in sets.values():
        kernels += objective.candidate_kernels(config, candidates.of_rank(world), value_bytes)
    counts = {name: candidates.count for name, (candidates, _) in sets.items()}
    shape = StepShape(config, samples, samples * world, lengths, counts, value_bytes)
    for objective in task.objectives:
        kernels += objective.kernels(shape)
    return kernels


def patch_values(views: Views, config: ImpConfig) -> dict[str, int]:
    """Raw values that become one token, by modality in view; and of text, which objectives may add: 0."""
    found = {name: get_modality(name).values(getattr(views, name), config) for name in views.names()}
    return {TEXT: 0} | found


def _encoder(
    segments: Sequence[tuple[str, int]], values: dict[str, int], config: ImpConfig, samples: int, size: int, ep_size: int
) -> list[Kernel]:
    """A sequence of segments (modality, tokens) from their raw values, so many for a token, to the pooled encoding."""
    length, width, kernels = sum(length for _, length in segments), config.hidden_size, []
    for modality, part in segments:
        kernels += get_modality(modality).kernels(config, samples * part, values[modality], size)
        kernels += [product(samples * part, width, width, size)] * 2  # before and after the blocks
    tokens = samples * length
    kernels += [passes("norm", 5 * tokens * width * size, 1), passes("copy", 6 * tokens * width * size, 4)]  # biases, mean
    shape, sparse = (config, samples, length, size), len(config.moe_layer_indices)
    kernels += (attention(*shape) + feed_forward(*shape)) * (config.num_hidden_layers - sparse)
    if not sparse:
        return kernels
    linears = config.conditional_linears or ()
    kernels += additional_merges(config, segments, size, ep_size) * sparse
    last = feed_forward(*shape, linears, ep_size) if linears else mixture(*shape, ep_size)
    return kernels + (attention(*shape, linears, ep_size) + last) * sparse


def additional_merges(config: ImpConfig, segments: Sequence[tuple[str, int]], size: int, ep_size: int) -> list[Kernel]:
    """In a block: of a gate that is the same for a segment the sums for each further condition."""
    if not config.has_constant_gate:
        return []
    gated = segments[1:] if segments[0] == ("text", 1) and len(segments) > 1 else segments  # <SPE> has that of the next one
    merged = [
        replace(kernel, of=linear_prefix(name))
        for name in config.conditional_linears or ()
        for kernel in merge_experts(config, name, size, ep_size)
    ]
    return merged * (len({modality for modality, _ in gated}) - 1)


def _linear(
    name: str, config: ImpConfig, samples: int, length: int, size: int, linears: Sequence[str], ep_size: int
) -> list[Kernel]:
    """A linear layer of a block, plain or, when it is among `linears`, conditional."""
    if name in linears:
        return conditional_linear(config, name, samples, length, size, ep_size)
    return [product(samples * length, *linear_widths(config, name), size, in_block=True, of=linear_prefix(name))]


def attention(
    config: ImpConfig, samples: int, length: int, size: int, linears: Sequence[str] = (), ep_size: int = 1
) -> list[Kernel]:
    """Norm, queries, keys and values, attention, output, and the residual sum; `linears` are conditional."""
    tokens, width = samples * length, config.hidden_size
    norms = 3 if config.qk_norm else 1
    # forward reads 3 and writes 1 tensor of the width, backward reads 5 and writes 3
    inside = tuple(f"attention.{part}." for part in ("query_norm", "key_norm", "prompts"))
    scores = Kernel("attention", 0, 12 * samples * length**2 * width, 12 * tokens * width * size, 1, True, of=inside)
    return [
        passes("norm", 5 * norms * tokens * width * size, norms, in_block=True, of=("attention_norm.",)),
        *_linear("qkv", config, samples, length, size, linears, ep_size),
        scores,
        *_linear("out", config, samples, length, size, linears, ep_size),
        # heads laid side by side again (2 + 2), three gradients joined to one (6), the residual's two sums (6)
        passes("copy", 16 * tokens * width * size, 4, in_block=True),
    ]


def feed_forward(
    config: ImpConfig, samples: int, length: int, size: int, linears: Sequence[str] = (), ep_size: int = 1
) -> list[Kernel]:
    """Norm, two linear layers with an activation between them, and the residual sum; `linears` are conditional."""
    tokens, width, hidden = samples * length, config.hidden_size, config.intermediate_size
    return [
        passes("norm", 5 * tokens * width * size, 1, in_block=True, of=("feed_forward_norm.",)),
        *_linear("up", config, samples, length, size, linears, ep_size),
        passes("gelu", 5 * tokens * hidden * size, 1, in_block=True),
        *_linear("down", config, samples, length, size, linears, ep_size),
        passes("copy", 6 * tokens * width * size, 2, in_block=True),
    ]
