"""What a run costs, by arithmetic alone: parameters, tokens, memory and time of a rank, who holds which experts.

Parameters are counted on the meta device, where nothing is allocated. Time is predicted from a machine's hardware profile.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from imp_ds.config import RunConfig
from imp_ds.costs import Parameters
from imp_ds.errors import UserError
from imp_ds.families import family_of
from imp_ds.families.family import CostModel
from imp_ds.families.trainable import Trained, trained_parts
from imp_ds.planning.choice import Case, Choice
from imp_ds.planning.hardware_profile import HardwareProfile, h200
from imp_ds.planning.memory import PRECISIONS, Memory
from imp_ds.planning.time import Network, TaskTime
from imp_ds.tasks import Task
from imp_ds.train.engine.layout import check_layout
from imp_ds.train.schedule import build_schedule


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
class ExpertGroup:
    """Ranks that together hold every expert once; `experts` are the indices that each of them holds, in the same order."""

    ranks: list[int]
    experts: list[range]
    nodes: list[int]


@dataclass(frozen=True)
class Plan:
    """The plan of a run on `nodes` x `gpus` ranks. `times` and `choices` are empty where no hardware profile is known; `trained`
    is None where everything is."""

    name: str
    nodes: int
    gpus: int
    ep_size: int
    stage: int
    precision: str
    parameters: Parameters
    tasks: list[TaskPlan]
    memory: list[Memory]
    groups: list[ExpertGroup]
    profile: HardwareProfile | None
    times: list[TaskTime]
    choices: list[Choice]
    trained: Trained | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def step_seconds(self) -> float:
        """Mean over the schedule."""
        return sum(task.share_of_steps * time.seconds for task, time in zip(self.tasks, self.times))


def plan(
    run: RunConfig, nodes: int, gpus: int, precision: str | None = None, *, stage: int = 2,
    profile: HardwareProfile | None = None,
    gpu_link_gbs: float = 450.0, node_link_gbs: float = 50.0,
) -> Plan:  # fmt: skip
    """The plan of `run` on `nodes` nodes of `gpus` ranks each.

    Args:
        precision: "bf16" or "float32"; None takes that of the profile.
        stage: ZeRO stage that times and expert groups are planned for.
        profile: of the machine; None takes that of an H200 for bf16, and plans no times for float32.
        gpu_link_gbs, node_link_gbs: GB/s of one rank to the others of its node (unless the profile has measured that), and to
            other nodes.

    Raises UserError for what could not be trained at all.
    """
    precision = precision or (profile.precision if profile else "bf16")
    if precision not in PRECISIONS:
        raise UserError("unknown precision", got=precision, allowed=", ".join(PRECISIONS))
    if profile is not None and profile.precision != precision:
        got = f"{profile.precision} of {profile.machine}"
        raise UserError("the hardware profile is of another precision", got=got, allowed=precision)
    world = nodes * gpus
    check_layout(run, world, {"zero_optimization": {"stage": stage}})
    profile = h200() if profile is None and precision == "bf16" else profile
    family, trained = family_of(run), None
    if run.train.trainable is not None:
        trained = trained_parts(family.Model, family.config(run), run.train.trainable)
    cost = family.cost(run)
    sizes, tasks, ep_size = cost.sizes(), plan_tasks(run, cost), run.train.ep_size
    network = Network(gpus, gpu_link_gbs * 1e9, node_link_gbs * 1e9, profile.links if profile else None)
    case = Case(seen_run(run), cost, sizes, world, precision, profile, network, tuple(task.share_of_steps for task in tasks))
    groups = expert_groups(cost.experts, ep_size, world, gpus) if cost.experts else []
    return Plan(
        run.name, nodes, gpus, ep_size, stage, precision, cost.parameters(sizes), tasks,
        [case.memory(ep_size, stage) for stage in range(4)], groups, profile,
        case.times(ep_size, stage) if profile else [], case.choices(stage) if profile and cost.experts else [],
        trained, _warnings(run, cost, groups, gpus),
    )  # fmt: skip


def _warnings(run: RunConfig, cost: CostModel, groups: list[ExpertGroup], gpus: int) -> list[str]:
    found = []
    if any(len(group.nodes) > 1 for group in groups):
        found.append(
            f"expert groups span nodes: every MoE layer exchanges tokens over the network; ep_size that divides {gpus} avoids it"
        )
    if cost.experts and run.optimizer.clip:
        found.append("ZeRO 0 is refused for this run: with experts it clips by a wrong norm")
    return found


def seen_run(run: RunConfig) -> RunConfig:
    """The run with an entry for each view of a task, under the task's name."""
    return run.model_copy(update={"tasks": [seen for task in run.tasks for seen in task.variants()]})


def plan_tasks(run: RunConfig, cost: CostModel) -> list[TaskPlan]:
    """What each task feeds in each of its views, and its share of the run."""
    rows = []
    for name, seen, share in view_shares(run):
        tokens = cost.tokens(seen)
        rows.append((name, tokens, seen.batch_size, seen.batch_size * sum(tokens.values()), share))
    mean = sum(share * per_step for *_, per_step, share in rows)
    return [TaskPlan(*row, row[4] * row[3] / mean) for row in rows]


def view_shares(run: RunConfig) -> Iterator[tuple[str, Task, float]]:
    """Of each task in each of its views: its name, the task with that view alone, and its share of the run's steps."""
    shares = build_schedule(run.train.schedule, run.tasks, run.train.seed).shares()
    for task in run.tasks:
        weights = [views.weight for views in task.all_views]
        for number, seen in enumerate(task.variants()):
            name = task.name if len(weights) == 1 else f"{task.name}, view {number}"
            yield name, seen, shares[task.name] * weights[number] / sum(weights)


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
