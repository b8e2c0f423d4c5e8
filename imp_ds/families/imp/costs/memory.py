"""What a rank keeps of a step of IMP for its backward, counted.

Shapes: b samples of a rank, L tokens of a sample, T = b * L, D width, F feed-forward width, P values of a patch, V words of the
vocabulary.
"""

from imp_ds.config import DataSettings
from imp_ds.costs import FLOAT32
from imp_ds.families.imp.costs.flops import patch_values
from imp_ds.families.imp.costs.flops_experts import expert_rows, linear_widths
from imp_ds.families.imp.costs.tokens import candidate_sequences, task_sequences, task_tokens
from imp_ds.models.imp.configuration_imp import ImpConfig
from imp_ds.objectives.objective import StepShape
from imp_ds.tasks import Task


def activation_bytes(
    task: Task, config: ImpConfig, data: DataSettings, world: int, size: int, checkpointing: bool
) -> float:
    """What one rank keeps of one step of `task` for the backward, and the most that the backward of one block needs beside it.

    One micro-batch is in memory at a time.
    """
    layers, moe, width = config.num_hidden_layers, len(config.moe_layer_indices), config.hidden_size
    kept, most, values = 0.0, 0.0, patch_values(task.views, config)
    for sequences in (*task_sequences(task, config, data).values(), *candidate_sequences(task, config).values()):
        samples, length = sequences.of_rank(world, task.micro_batches), sequences.length
        tokens = samples * length
        dense, sparse = block_values(config, samples, length)
        passing = 2 * tokens * (config.intermediate_size + width)  # gradients on their way through a block
        kept += samples * sum(part * (values[modality] + 6 * width) for modality, part in sequences.segments)
        if checkpointing:
            kept += layers * tokens * width
            passing += max(dense, sparse)
        else:
            kept += (layers - moe) * dense + moe * sparse
        most = max(most, passing)
    samples = task.batch_size // world // task.micro_batches
    counts = {name: found.count for name, found in candidate_sequences(task, config).items()}
    everyone = samples * world * task.micro_batches
    shape = StepShape(config, samples, everyone, task_tokens(task, config, data), counts, size)
    losses = sum(objective.loss_values(shape) for objective in task.objectives)
    return (kept + most) * size + losses * FLOAT32


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
