"""Which size of expert groups is best: every size that is possible, by time, memory and communication."""

from dataclasses import dataclass

from imp_ds.config import RunConfig
from imp_ds.costs import is_of_experts
from imp_ds.families.family import CostModel
from imp_ds.families.trainable import is_trained
from imp_ds.planning.hardware_profile import HardwareProfile
from imp_ds.planning.memory import Memory, memory_of_rank
from imp_ds.planning.time import VALUE_BYTES, Network, TaskTime, task_time

GIB = 2**30


@dataclass(frozen=True)
class Choice:
    """One size of expert groups: bytes of a rank, seconds of a mean step, and what of them is communication, by purpose."""

    ep_size: int
    nodes_of_group: int
    memory: float
    seconds: float
    communication: dict[str, float]


@dataclass(frozen=True)
class Case:
    """A run on a machine, before it is decided how experts are spread. `shares` are those of the tasks in the steps."""

    run: RunConfig
    cost: CostModel
    sizes: dict[str, int]
    world: int
    precision: str
    profile: HardwareProfile | None
    network: Network
    shares: tuple[float, ...]

    def memory(self, ep_size: int, stage: int) -> Memory:
        """Of a rank, in the task that keeps most."""
        every, trained = _kinds(self.sizes), None
        if (patterns := self.run.train.trainable) is not None:
            trained = _kinds({name: size for name, size in self.sizes.items() if is_trained(name, patterns)})
        checkpointing = self.run.train.gradient_checkpointing
        size = VALUE_BYTES[self.precision]
        most = max(self.cost.activation_bytes(task, self.world, size, checkpointing) for task in self.run.tasks)
        average = self.run.train.ema is not None
        return memory_of_rank(*every, stage, self.world, ep_size, self.precision, most, trained, average)

    def times(self, ep_size: int, stage: int) -> list[TaskTime]:
        """Of each task, in the run's order."""
        layout = dict(world=self.world, ep_size=ep_size, stage=stage, profile=self.profile, network=self.network)
        return [task_time(self.run, self.cost, self.sizes, task, **layout) for task in self.run.tasks]

    def choices(self, stage: int) -> list[Choice]:
        """Every group size that divides the experts and the ranks, smallest first."""
        ranks = range(1, self.cost.experts + 1)
        return [self._choice(n, stage) for n in ranks if self.cost.experts % n == 0 and self.world % n == 0]

    def _choice(self, ep_size: int, stage: int) -> Choice:
        times = self.times(ep_size, stage)
        mean = sum(share * time.seconds for share, time in zip(self.shares, times))
        parts = {
            name: sum(share * time.communication[name] for share, time in zip(self.shares, times))
            for name in times[0].communication
        }
        nodes = -(-ep_size // self.network.gpus)
        return Choice(ep_size, nodes, self.memory(ep_size, stage).total, mean, parts)


def best(choices: list[Choice], memory_gib: float) -> Choice:
    """The fastest that fits into a rank's memory; of those within 1% of it, the one that needs least. Where none fits, the
    one that needs least."""
    fitting = [choice for choice in choices if choice.memory <= memory_gib * GIB]
    if not fitting:
        return min(choices, key=lambda choice: choice.memory)
    fastest = min(choice.seconds for choice in fitting)
    return min((choice for choice in fitting if choice.seconds <= 1.01 * fastest), key=lambda choice: choice.memory)


def advice(choices: list[Choice], memory_gib: float) -> str:
    """One sentence: which size, and what it saves and pays against the next smaller and the next larger one."""
    chosen = best(choices, memory_gib)
    position = choices.index(chosen)
    reasons = [_against(chosen, choices[i]) for i in (position - 1, position + 1) if 0 <= i < len(choices)]
    if chosen.memory > memory_gib * GIB:
        reasons.insert(0, f"no size fits into {memory_gib:,.0f} GiB, and it needs least")
    return f"ep_size {chosen.ep_size} is best: " + ("; ".join(reasons) if reasons else "no other size is possible here")


def _against(chosen: Choice, other: Choice) -> str:
    exchange = chosen.communication["tokens to experts"] - other.communication["tokens to experts"]
    reduce = sum(chosen.communication[name] - other.communication[name] for name in ("gradients", "weights"))
    beyond = f" (whose groups span {other.nodes_of_group} nodes)" if other.nodes_of_group > 1 else ""
    return (
        f"against {other.ep_size}{beyond} a step spends {1e3 * exchange:+,.2f} ms on exchanging tokens and "
        f"{1e3 * reduce:+,.2f} ms on gradients and weights, {1e3 * (chosen.seconds - other.seconds):+,.2f} ms in all, "
        f"and a rank holds {(chosen.memory - other.memory) / GIB:+,.2f} GiB"
    )


def _kinds(sizes: dict[str, int]) -> tuple[int, int]:
    """Parameters that are no experts, and those that are."""
    experts = sum(n for name, n in sizes.items() if is_of_experts(name))
    return sum(sizes.values()) - experts, experts
