"""The plan whose workers a check of the data counts, or why there is none: the check starts no ranks, and goes on without it."""

from dataclasses import dataclass
from typing import NamedTuple

from imp_ds.config import RunConfig
from imp_ds.errors import UserError
from imp_ds.planning.hardware_profile import HardwareProfile
from imp_ds.planning.plan import Plan, plan, view_shares


class TaskShare(NamedTuple):
    """A task in one of its views, its batch over all ranks, and its share of the run's steps."""

    name: str
    batch_size: int
    share_of_steps: float


@dataclass(frozen=True)
class NoPlan:
    """What a check knows where the plan of `nodes` x `gpus` ranks is refused: tasks without times, and `why`."""

    nodes: int
    gpus: int
    tasks: list[TaskShare]
    why: str
    profile: None = None
    precision: None = None
    times: tuple = ()

    @property
    def warning(self) -> str:
        return f"no plan of {self.nodes} node(s) x {self.gpus} rank(s), which --nodes and --gpus choose: {self.why}"


def plan_for_check(run: RunConfig, nodes: int, gpus: int, profile: HardwareProfile | None) -> Plan | NoPlan:
    """The plan of a run, or what is known without it where it is refused. Raises UserError for a schedule that is none."""
    try:
        return plan(run, nodes, gpus, profile=profile)
    except UserError as error:
        tasks = [TaskShare(name, seen.batch_size, share) for name, seen, share in view_shares(run)]
        return NoPlan(nodes, gpus, tasks, error.one_line)
