"""Memory of a rank: exact for weights, gradients and optimizer states under DeepSpeed's ZeRO stages, counted for activations.

DeepSpeed 0.19.8 gathers gradients for reduction in buffers of reduce_bucket_size values from ZeRO 1 on: as shipped for GPUs two
of 25 M where communication overlaps (ZeRO 1 and 2), else one of 500 M. A GPU allocates them whole; on a CPU only what is
written takes memory. ZeRO 3 also gathers weights: up to stage3_max_live_parameters = 1,000 M stay whole through forward and
backward.

Shapes: b samples of a rank, L tokens of a sample, T = b * L, D width, F feed-forward width, P values of a patch, V words of the
vocabulary.
"""

from dataclasses import dataclass

from imp_ds.config import AudioSettings
from imp_ds.costs import FLOAT32
from imp_ds.models.imp.configuration_imp import ImpConfig
from imp_ds.objectives.objective import StepShape
from imp_ds.tasks import Task
from imp_ds.tokens import candidate_sequences, task_sequences, task_tokens
from imp_ds.train.flops import patch_values
from imp_ds.train.flops_experts import expert_rows, map_widths

# bytes of a parameter: weights, gradients, optimizer. bf16: gradients accumulate in float32; DeepSpeed keeps a float32 master
# copy of what a rank updates, in float32 training too, and AdamW two moments
PRECISIONS = {"bf16": (2, 4, 12), "float32": (4, 4, 12)}
BUCKET, OVERLAPPING, LIVE = 500_000_000, 2 * 25_000_000, 1_000_000_000


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank under one ZeRO stage."""

    stage: int
    weights: float
    gradients: float
    optimizer: float
    buffers: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.buffers + self.activations


def memory_of_rank(rest: int, experts: int, stage: int, world: int, ep_size: int, precision: str, activations: float) -> Memory:
    """Bytes of one rank, from all parameters that are no experts and all that are. ZeRO 1 shares the optimizer's states among
    replicas, 2 also gradients, 3 also weights; what is not an expert has `world` replicas, an expert world / ep_size. float32
    stands for training on a CPU, bf16 on a GPU, as the shipped configurations have it."""
    own_experts = experts / ep_size
    whole = rest + own_experts
    shared = rest / world + own_experts / (world / ep_size)
    weights, gradients, optimizer = PRECISIONS[precision]
    if precision == "float32":
        bucket = min(BUCKET, whole)
    else:
        bucket = BUCKET if stage == 3 else OVERLAPPING
    gathered = min(LIVE, whole) if stage == 3 else 0
    return Memory(
        stage,
        weights * (shared if stage >= 3 else whole),
        gradients * (shared if stage >= 2 else whole),
        optimizer * (shared if stage >= 1 else whole),
        (bucket + gathered) * weights if stage >= 1 else 0.0,
        activations,
    )


def activation_bytes(
    task: Task, config: ImpConfig, audio: AudioSettings, world: int, precision: str, checkpointing: bool
) -> float:
    """What one rank keeps of one step of `task` for the backward, and the most that the backward of one block needs beside it.

    A batch in pieces keeps one piece at a time.
    """
    size = PRECISIONS[precision][0]
    layers, moe, width = config.num_hidden_layers, len(config.moe_layer_indices), config.hidden_size
    kept, most, values = 0.0, 0.0, patch_values(task.views, config)
    for sequences in (*task_sequences(task, config, audio).values(), *candidate_sequences(task, config).values()):
        samples, length = sequences.of_rank(world, task.pieces), sequences.length
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
    samples = task.batch_size // world // task.pieces
    counts = {name: found.count for name, found in candidate_sequences(task, config).items()}
    everyone = samples * world * task.pieces
    shape = StepShape(config, samples, everyone, task_tokens(task, config, audio), counts, size)
    losses = sum(objective.loss_values(shape) for objective in task.objectives)
    return (kept + most) * size + losses * FLOAT32


def block_values(config: ImpConfig, samples: int, length: int) -> tuple[float, float]:
    """Values that a dense block and a MoE block keep: the inputs of both norms and of both maps after them, queries, keys and
    values (normed ones too), the attention's answer, and the feed-forward before and after its activation. Experts keep what
    enters their activation and gate, and their answers; the rest they compute again (`imp_ds.moe.cpu_experts`)."""
    tokens, width, hidden = samples * length, config.hidden_size, config.intermediate_size
    shared = tokens * width * (10 if config.qk_norm else 8)
    dense = shared + 2 * tokens * hidden
    if not config.num_experts:
        return dense, 0.0
    if config.conditional_maps:
        return dense, dense + sum(map_values(config, name, samples, length) for name in config.conditional_maps)
    entering = 2 if config.expert_activation == "geglu" else 1
    rows = expert_rows(config, samples, length)
    return dense, shared + rows * (width + entering * hidden) + 4 * tokens * config.num_experts


def map_values(config: ImpConfig, name: str, samples: int, length: int) -> float:
    """Values that a conditional map keeps beside its input: the experts' matrices that are summed, and their sum; or the rows
    that the experts get and give, and what the router knows of each token."""
    inward, outward = map_widths(config, name)
    if config.has_constant_gate:
        return (config.experts_per_token + 1) * inward * outward
    decided = 4 * samples * length * config.num_experts if config.decides(name) else 0
    return expert_rows(config, samples, length) * (inward + outward) + decided
