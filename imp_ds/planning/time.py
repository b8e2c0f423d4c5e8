"""The time of a step, predicted from a machine's hardware profile: a sum over what a rank runs and sends, with nothing
overlapped.

    step = sum over kernels [ calls * overhead + max(flops / flops_per_s(width), bytes / bytes_per_s) ]        compute
         + step_s + tensors * tensor_s + held * held_s + updated * owned_s                                     engine
         + sum over collectives [ calls * latency * ceil(log2 n) + traffic / bandwidth ]                        communication

Compute is what the model's family gives (`CostModel.kernels`); kernels of blocks count their forward twice where it runs twice
(gradient checkpointing, GradCache): 4/3 of all, where everything is trained. Traffic of one rank in a group of n, for S bytes of
the joined tensor: all-reduce 2 S (n-1)/n, all-gather and reduce-scatter S (n-1)/n, all-to-all (S what a rank sends in all)
S (n-1)/n. What DeepSpeed 0.19.8 sends in a step:

    ZeRO 0        all-reduce of the gradients of the task's parameters
    ZeRO 1, 2     the same, and all-gather of all trained weights after the update
    ZeRO 3        reduce-scatter of these gradients; all-gather of the weights, module by module, forward and backward, those of
                  the blocks for each modality; frozen ones too
    MoE layer     two all-to-alls of the experts' rows forward and two backward, for each modality; two more when run again;
                  so has each conditional linear layer, or, of a gate that is the same for a segment, an all-reduce of its matrix
                  each way
    contrastive   all-gather of both sides' vectors, and reduce-scatter of their gradients
    each step     a few numbers: the norm, and whether all ranks are well

What is not an expert has `world` replicas, an expert world / ep_size. Inside a node a group's bandwidth is the link between
its GPUs. A ring over several nodes enters each node once for each of its g ranks there, so min(gpu link, g * node link); of
an all-to-all, the share for other nodes passes the rank's own node link while the rest passes the GPUs' link.
"""

import math
from dataclasses import dataclass

from imp_ds.config import RunConfig
from imp_ds.costs import Exchange, is_of_experts
from imp_ds.families.family import CostModel
from imp_ds.families.trainable import is_trained
from imp_ds.planning.hardware_profile import HardwareProfile, Link
from imp_ds.tasks import Task

VALUE_BYTES = {"bf16": 2, "float32": 4}
CONTROL_CALLS = 4


@dataclass(frozen=True)
class Network:
    """Links in bytes a second of one rank; `measured`, where there are any, are those inside a node, by operation."""

    gpus: int
    gpu_link: float = 450e9
    node_link: float = 50e9
    measured: dict[str, Link] | None = None
    latency_s: float = 2e-5

    def seconds(self, operation: str, size: float, calls: int, ranks: int, stride: int = 1) -> float:
        """Of `calls` collectives of `size` bytes in all, among `ranks` ranks that lie `stride` apart."""
        if ranks == 1 or not calls:
            return 0.0
        traffic = size * (ranks - 1) / ranks * (2 if operation == "all_reduce" else 1)
        link = (self.measured or {}).get(operation, Link(latency_s=self.latency_s, bytes_per_s=self.gpu_link))
        starts = calls * link.latency_s * math.ceil(math.log2(ranks))
        here = max(1, min(ranks, self.gpus // stride))
        if here == ranks:
            return starts + calls * link.moving_s(traffic / calls)
        if operation == "all_to_all":
            return starts + max(size * (here - 1) / ranks / link.bytes_per_s, size * (ranks - here) / ranks / self.node_link)
        return starts + traffic / min(link.bytes_per_s, here * self.node_link)


@dataclass(frozen=True)
class Weights:
    """Parameters of one rank: those it updates and those that a task gives gradients to, apart for experts (which have
    world / ep_size replicas) and the rest (world); and tensors and modules that have gradients. Each encoding of a step meets
    those of the blocks again, `again_rest` of the parameters."""

    rest: int
    experts: int
    touched_rest: int
    touched_experts: int
    touched_tensors: int
    touched_modules: int
    again_rest: int
    again_tensors: int
    again_modules: int

    def met(self, what: str, encodings: int) -> int:
        """How often a step of so many encodings meets "rest", "tensors" or "modules"."""
        return getattr(self, f"touched_{what}") + (encodings - 1) * getattr(self, f"again_{what}")


@dataclass(frozen=True)
class TaskTime:
    """Seconds of a step of one task, and its model FLOPs over all ranks. `communication` by what it is for."""

    name: str
    compute: float
    engine: float
    communication: dict[str, float]
    flops: float

    @property
    def seconds(self) -> float:
        return self.compute + self.engine + sum(self.communication.values())


def task_weights(sizes: dict[str, int], touched_by: tuple[str, ...], shared: tuple[str, ...], ep_size: int) -> Weights:
    """From the number of elements of each parameter of a model, by name, and the prefixes of those that a task touches, and that
    every encoding runs through."""
    touched = {name: n for name, n in sizes.items() if name.startswith(touched_by)}
    experts = sum(n for name, n in sizes.items() if is_of_experts(name))
    touched_experts = sum(n for name, n in touched.items() if is_of_experts(name))
    again = [name for name in touched if name.startswith(shared)]
    modules = lambda names: len({name.rpartition(".")[0] for name in names})  # noqa: E731
    return Weights(
        rest=sum(sizes.values()) - experts, experts=experts // ep_size,
        touched_rest=sum(touched.values()) - touched_experts, touched_experts=touched_experts // ep_size,
        touched_tensors=len(touched), touched_modules=modules(touched),
        again_rest=sum(touched[name] for name in again if not is_of_experts(name)),
        again_tensors=len(again), again_modules=modules(again),
    )  # fmt: skip


def task_time(
    run: RunConfig, cost: CostModel, sizes: dict[str, int], task: Task, *,
    world: int, ep_size: int, stage: int, profile: HardwareProfile, network: Network,
) -> TaskTime:  # fmt: skip
    """The prediction for one task on `world` ranks with `ep_size` ranks to a set of experts, under a ZeRO stage."""
    compares = run.train.mixed or any(objective.compared_vectors() for objective in task.objectives)
    again = run.train.gradient_checkpointing or task.micro_batches > 1 and compares  # GradCache runs the forward twice
    size = VALUE_BYTES[profile.precision]
    kernels = cost.kernels(task, world, size, ep_size)
    compute = sum(profile.kernels[k.kind].seconds(k) * (1 + k.forward if again and k.in_block else 1) for k in kernels)
    used, calls = cost.touched(task), cost.encodings(task)
    trained = {name: count for name, count in sizes.items() if is_trained(name, run.train.trainable)}
    weights, gathered = (task_weights(held, *used, ep_size) for held in (trained, sizes))
    communication = {
        "gradients": gradient_seconds(weights, stage, world, ep_size, profile.precision, network),
        "weights": weight_seconds(gathered if stage == 3 else weights, stage, calls, world, ep_size, profile.precision, network),
        "tokens to experts": exchange_seconds(cost.exchanges(task, world, 3 if again else 2, size), ep_size, network),
        "contrastive": exchange_seconds(cost.compared(task), world, network),
        "control": network.seconds("all_reduce", 0.0, CONTROL_CALLS, world),
    }
    engine = engine_seconds(weights, stage, calls, world, ep_size, profile)
    return TaskTime(task.name, compute, engine, communication, cost.flops(task, world))


def engine_seconds(weights: Weights, stage: int, calls: int, world: int, ep_size: int, profile: HardwareProfile) -> float:
    """What DeepSpeed and the optimizer do beside communicating; ZeRO 3 meets every tensor again in each of `calls` encodings."""
    rate = profile.engine[stage]
    held = weights.rest + weights.experts
    updated = weights.rest / world + weights.experts * ep_size / world if stage else held
    tensors = weights.met("tensors", calls if stage == 3 else 1)
    return rate.step_s + tensors * rate.tensor_s + held * rate.held_s + updated * rate.owned_s


def gradient_seconds(weights: Weights, stage: int, world: int, ep_size: int, precision: str, network: Network) -> float:
    """Gradients averaged over replicas, one call for each group of ranks."""
    operation, size = ("reduce_scatter" if stage == 3 else "all_reduce"), VALUE_BYTES[precision]
    rest = network.seconds(operation, weights.touched_rest * size, 1, world)
    return rest + network.seconds(operation, weights.touched_experts * size, 1, world // ep_size, ep_size)


def weight_seconds(
    weights: Weights, stage: int, calls: int, world: int, ep_size: int, precision: str, network: Network
) -> float:
    """Weights gathered: once after the update (ZeRO 1, 2), or module by module in `calls` encodings (ZeRO 3)."""
    size, replicas = VALUE_BYTES[precision], world // ep_size
    if stage < 3:
        gathered = (weights.rest, weights.experts, 1) if stage else (0, 0, 0)
    else:
        modules, rest = weights.met("modules", calls), weights.met("rest", calls)
        gathered = (2 * rest, 2 * calls * weights.touched_experts, 2 * modules)
    rest = network.seconds("all_gather", gathered[0] * size, gathered[2], world)
    return rest + network.seconds("all_gather", gathered[1] * size, 1 if gathered[1] else 0, replicas, ep_size)


def exchange_seconds(exchanges: list[Exchange], ranks: int, network: Network) -> float:
    """Of collectives inside a group of `ranks` ranks."""
    return sum(network.seconds(*exchange, ranks) for exchange in exchanges)
