"""What a rank keeps of a step of IMP for its backward, counted.

Shapes: b samples of a rank, L tokens of a sample, T = b * L, D width, F feed-forward width, P values of a patch, V words of the
vocabulary.
"""

from collections.abc import Callable

from imp_ds.config import DataSettings
from imp_ds.costs import FLOAT32, Sequences
from imp_ds.families.imp.costs.flops import patch_values
from imp_ds.families.imp.costs.flops_experts import expert_rows, linear_widths
from imp_ds.families.imp.costs.tokens import candidate_sequences, task_sequences, task_tokens
from imp_ds.models.imp.configuration_imp import ImpConfig
from imp_ds.objectives.objective import StepShape
from imp_ds.tasks import Task


def activation_bytes(
    task: Task, config: ImpConfig, data: DataSettings, world: int, size: int, checkpointing: bool,
    embeds: Callable[[str], bool] = lambda modality: True,
    kept_blocks: Callable[[Sequences, int], list[float]] | None = None,
) -> float:  # fmt: skip
    """What one rank keeps of one step of `task` for the backward, and the most that the backward of one block needs beside it.

    One micro-batch is in memory at a time. embeds, kept_blocks: of a run that trains a part of the model, those of
    `imp_ds.families.imp.costs.frozen.FrozenStep`; by default all is trained.
    """
    width, kept, most, values = config.hidden_size, 0.0, 0.0, patch_values(task.views, config)
    kept_blocks = kept_blocks or (lambda sequences, samples: all_blocks(config, samples, sequences.length))
    for sequences in (*task_sequences(task, config, data).values(), *candidate_sequences(task, config).values()):
        samples, length = sequences.of_rank(world, task.micro_batches), sequences.length
        tokens, blocks = samples * length, [values for values in kept_blocks(sequences, samples) if values]
        passing = 2 * tokens * (config.intermediate_size + width) if blocks else 0  # gradients on their way through a block
        before = {modality: values[modality] + 3 * width if embeds(modality) else 0 for modality, _ in sequences.segments}
        after = 3 * width if blocks or any(before.values()) else 0
        kept += samples * sum(part * (before[modality] + after) for modality, part in sequences.segments)
        if checkpointing and blocks:
            kept += len(blocks) * tokens * width
            passing += max(blocks)
        else:
            kept += sum(blocks)
        most = max(most, passing)
    samples = task.batch_size // world // task.micro_batches
    counts = {name: found.count for name, found in candidate_sequences(task, config).items()}
    everyone = samples * world * task.micro_batches
    shape = StepShape(config, samples, everyone, task_tokens(task, config, data), counts, size)
    losses = sum(objective.loss_values(shape) for objective in task.objectives)
    return (kept + most) * size + losses * FLOAT32


def all_blocks(config: ImpConfig, samples: int, length: int) -> list[float]:
    """`block_values` of each layer."""
    values = block_values(config, samples, length)
    return [values[layer in config.moe_layer_indices] for layer in range(config.num_hidden_layers)]


def block_values(config: ImpConfig, samples: int, length: int) -> tuple[float, float]:
    """Values that a dense block and a MoE block keep: the inputs of both norms and of both linear layers after them, queries,
    keys and values (normed ones too), the attention's answer, and the feed-forward before and after its activation. Experts keep
    what enters their activation and gate, and their answers; the rest they compute again (`imp_ds.moe.kernels.cpu_experts`)."""
    tokens, width, hidden = samples * length, config.hidden_size, config.intermediate_size
    shared = tokens * width * (10 if config.qk_norm else 8)
    dense = shared + 2 * tokens * hidden
    if not config.num_experts:
        return dense, 0.0
    if config.conditional_linears:
        return dense, dense + sum(linear_values(config, name, samples, length) for name in config.conditional_linears)
    entering = 2 if config.expert_activation == "geglu" else 1
    rows = expert_rows(config, samples, length)
    return dense, shared + rows * (width + entering * hidden) + 4 * tokens * config.num_experts


def linear_values(config: ImpConfig, name: str, samples: int, length: int) -> float:
    """Values that a conditional linear layer keeps beside its input: the experts' matrices that are summed, and their sum; or the
    rows that the experts get and give, and what the router knows of each token."""
    in_features, out_features = linear_widths(config, name)
    if config.has_constant_gate:
        return (config.experts_per_token + 1) * in_features * out_features
    decided = 4 * samples * length * config.num_experts if config.decides(name) else 0
    return expert_rows(config, samples, length) * (in_features + out_features) + decided
