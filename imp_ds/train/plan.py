"""What a run costs, by arithmetic alone: parameters, tokens, memory of a rank, who holds which experts.

Parameters are counted on the meta device, where nothing is allocated. Weights, gradients and optimizer states are exact
for the layouts of DeepSpeed's ZeRO stages; activations are an estimate and labelled so.
"""

from dataclasses import dataclass, field

import torch

from imp_ds.config import RunConfig
from imp_ds.errors import UserError
from imp_ds.layout import check_layout
from imp_ds.models.imp.configuration_imp import ImpConfig
from imp_ds.pretraining import ImpForPreTraining
from imp_ds.tokens import task_tokens
from imp_ds.train.schedule import build_schedule

GIB = 2**30
# bytes of a parameter: weights, gradients, optimizer. bf16: gradients accumulate in float32, and AdamW keeps a float32
# master copy and two moments; float32: two moments beside the weights.
PRECISIONS = {"bf16": (2, 4, 12), "float32": (4, 4, 8)}


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters. `encoder` is the blocks and the final norm; `experts` the part of it that experts hold;
    `active` what of the encoder one token meets on average; `rest` is embeddings, projections, heads and temperatures."""

    encoder: int
    experts: int
    active: int
    rest: int
    one_expert: int

    @property
    def total(self) -> int:
        return self.encoder + self.rest


@dataclass(frozen=True)
class TaskPlan:
    """One task: tokens of an example by modality, samples and tokens of a step over all ranks, shares of steps and tokens."""

    name: str
    tokens: dict[str, int]
    batch_size: int
    tokens_per_step: int
    share_of_steps: float
    share_of_tokens: float


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank under one ZeRO stage."""

    stage: int
    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class ExpertGroup:
    """Ranks that together hold every expert once; `experts` are the indices that each of them holds, in the same order."""

    ranks: list[int]
    experts: list[range]
    nodes: list[int]


@dataclass(frozen=True)
class Plan:
    """The plan of a run on `nodes` x `gpus` ranks."""

    name: str
    nodes: int
    gpus: int
    ep_size: int
    precision: str
    parameters: Parameters
    tasks: list[TaskPlan]
    memory: list[Memory]
    groups: list[ExpertGroup]
    warnings: list[str] = field(default_factory=list)


def plan(run: RunConfig, nodes: int, gpus: int, precision: str = "bf16") -> Plan:
    """The plan of `run` on `nodes` nodes of `gpus` ranks each. Raises UserError for what could not be trained at all."""
    if precision not in PRECISIONS:
        raise UserError("unknown precision", got=precision, allowed=", ".join(PRECISIONS))
    world = nodes * gpus
    check_layout(run, world, {"zero_optimization": {"stage": 2}})
    config = run.model.to_config(run.data.vocab_size, run.tasks)
    parameters = count_parameters(config)
    tasks = plan_tasks(run, config)
    ep_size = run.train.ep_size
    activations = max(activation_bytes(t, config, world, precision, run.train.gradient_checkpointing) for t in tasks)
    memory = [memory_of_rank(parameters, stage, world, ep_size, precision, activations) for stage in range(4)]
    groups = expert_groups(config.num_experts, ep_size, world, gpus) if config.num_experts else []
    warnings = []
    if any(len(group.nodes) > 1 for group in groups):
        warnings.append(
            f"expert groups span nodes: every MoE layer exchanges tokens over the network; ep_size that divides {gpus} avoids it"
        )
    if config.num_experts and run.optimizer.clip:
        warnings.append("ZeRO 0 is refused for this run: with experts it clips by a wrong norm")
    return Plan(run.name, nodes, gpus, ep_size, precision, parameters, tasks, memory, groups, warnings)


def count_parameters(config: ImpConfig) -> Parameters:
    """Count an ImpForPreTraining on the meta device."""
    with torch.device("meta"):
        model = ImpForPreTraining(config)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    encoder = sum(n for name, n in sizes.items() if name.startswith(("imp.blocks.", "imp.norm.")))
    experts = sum(n for name, n in sizes.items() if ".experts." in name)
    one_expert = experts // (config.num_experts * len(config.moe_layer_indices)) if config.num_experts else 0
    active = encoder - experts + round(config.capacity_factor * one_expert * len(config.moe_layer_indices))
    return Parameters(encoder, experts, active, sum(sizes.values()) - encoder, one_expert)


def plan_tasks(run: RunConfig, config: ImpConfig) -> list[TaskPlan]:
    """What each task feeds, and its share of the run."""
    shares = build_schedule(run.train.schedule, run.tasks, run.train.seed).shares()
    tokens = {task.name: task_tokens(task, config, run.data.audio) for task in run.tasks}
    per_step = {task.name: task.batch_size * sum(tokens[task.name].values()) for task in run.tasks}
    mean = sum(shares[name] * per_step[name] for name in per_step)
    return [
        TaskPlan(t.name, tokens[t.name], t.batch_size, per_step[t.name], shares[t.name], shares[t.name] * per_step[t.name] / mean)
        for t in run.tasks
    ]


def activation_bytes(task: TaskPlan, config: ImpConfig, world: int, precision: str, checkpointing: bool) -> float:
    """An estimate of what one rank keeps of one step for the backward, encoder only.

    A block keeps for each token: its input, two norms' outputs, the attention's three inputs and one output, the second
    residual (8 D), and the feed-forward before and after its activation (2 F, times the mean number of experts in a MoE
    layer). With checkpointing it keeps its input alone (D), and one block at a time keeps the rest.
    """
    tokens = task.tokens_per_step / world
    width = 8 * config.hidden_size
    hidden = 2 * config.intermediate_size
    moe, layers = len(config.moe_layer_indices), config.num_hidden_layers
    sparse = max(1.0, config.capacity_factor) if moe else 1.0
    if checkpointing:
        values = layers * config.hidden_size + width + hidden * sparse
    else:
        values = layers * width + (layers - moe) * hidden + moe * hidden * sparse
    return tokens * values * PRECISIONS[precision][0]


def memory_of_rank(parameters: Parameters, stage: int, world: int, ep_size: int, precision: str, activations: float) -> Memory:
    """Bytes of one rank. ZeRO 1 shares the optimizer's states among replicas, 2 also gradients, 3 also weights; what is
    not an expert has `world` replicas, an expert world / ep_size."""
    dense = parameters.total - parameters.experts
    own_experts = parameters.experts / ep_size
    whole = dense + own_experts
    shared = dense / world + own_experts / (world / ep_size)
    weights, gradients, optimizer = PRECISIONS[precision]
    return Memory(
        stage,
        weights * (shared if stage >= 3 else whole),
        gradients * (shared if stage >= 2 else whole),
        optimizer * (shared if stage >= 1 else whole),
        activations,
    )


def expert_groups(num_experts: int, ep_size: int, world: int, gpus: int) -> list[ExpertGroup]:
    """Consecutive ranks form a group, as DeepSpeed lays them out; each holds num_experts / ep_size consecutive experts."""
    own = num_experts // ep_size
    experts = [range(i * own, (i + 1) * own) for i in range(ep_size)]
    return [
        ExpertGroup(
            list(range(first, first + ep_size)), experts, sorted({rank // gpus for rank in range(first, first + ep_size)})
        )
        for first in range(0, world, ep_size)
    ]
