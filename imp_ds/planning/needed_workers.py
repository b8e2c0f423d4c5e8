"""How many loader workers keep up with a plan: what its steps take of samples, against what one worker prepares.

Workers prepare batches ahead, of all tasks in turn, so what counts is the mean over the schedule; a task that needs more than
that only for its own steps is served from what was prepared while others were computed.
"""

import math
from dataclasses import dataclass

from imp_ds.planning.check_plan import NoPlan
from imp_ds.planning.plan import Plan


@dataclass(frozen=True)
class Need:
    """A task in one of its views. wanted: samples a second that a rank takes while its steps are computed; speed: those that a
    worker prepares; None where it is not known."""

    name: str
    share_of_steps: float
    samples: float
    step_seconds: float | None
    speed: float | None

    @property
    def wanted(self) -> float | None:
        return None if self.step_seconds is None else self.samples / self.step_seconds

    @property
    def worker_seconds(self) -> float | None:
        """Of one worker, for a rank's share of one batch."""
        return None if self.speed is None else self.samples / self.speed


def needs(plan: Plan | NoPlan, speeds: list[float | None]) -> list[Need]:
    """Of each of `plan.tasks`, given the speed of one worker for each, in samples a second."""
    ranks = plan.nodes * plan.gpus
    seconds = [time.seconds for time in plan.times] or [None] * len(plan.tasks)
    return [
        Need(task.name, task.share_of_steps, task.batch_size / ranks, step_seconds, speed)
        for task, step_seconds, speed in zip(plan.tasks, seconds, speeds, strict=True)
    ]


def needed_workers(found: list[Need]) -> int | None:
    """Workers of each rank that prepare its batches as fast as they are computed, on average over the schedule: at least one.
    None where a task has no time or no speed."""
    if any(need.wanted is None or need.worker_seconds is None for need in found):
        return None
    working = sum(need.share_of_steps * need.worker_seconds for need in found)
    computing = sum(need.share_of_steps * need.step_seconds for need in found)
    return max(1, math.ceil(working / computing - 1e-9))
