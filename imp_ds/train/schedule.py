"""Which task trains at a step: a pure function of the step, so every rank and every resumed run agrees without talking.

Alternating gradient descent gives each optimizer step to one task. `Rotation` is the rule of the released IMP trainer
(`execution/executors.py`): visit the tasks in a fixed order; every visit adds 1 to that task's counter, and it trains
when the counter is a multiple of its interval. `Sampling` is the paper's wording (arXiv 2305.06324, figure 1): a task
is drawn at random at each step.
"""

from typing import NamedTuple

import numpy as np

from imp_ds.errors import UserError

SCHEDULES = ("rotation", "sampling")


class Turn(NamedTuple):
    """The task that trains at a step, and how many times it was trained before that step."""

    name: str
    visit: int


class Rotation:
    """Integer intervals in a fixed order.

    All counters are equal after a whole sweep over the tasks, so the first S sweeps hold sum_i floor(S / interval_i)
    steps, and a binary search finds the sweep of any step without walking there.

    Args:
        intervals: task name -> interval, in the order of the visits.
    """

    def __init__(self, intervals: dict[str, int]):
        if not intervals:
            raise UserError("a schedule needs at least one task")
        wrong = {name: k for name, k in intervals.items() if not isinstance(k, int) or k < 1}
        if wrong:
            raise UserError("a task's interval is not a positive integer", got=wrong, allowed="1, 2, 3, ...")
        self.intervals = dict(intervals)

    def _steps(self, sweeps: int) -> int:
        """Steps trained in the first `sweeps` sweeps."""
        return sum(sweeps // interval for interval in self.intervals.values())

    def at(self, step: int) -> Turn:
        """The turn of a step, counted from 0."""
        assert step >= 0
        low, high = 1, (step + 1) * min(self.intervals.values())  # after `high` sweeps one task alone has had step + 1 turns
        while low < high:
            middle = (low + high) // 2
            if self._steps(middle) > step:
                high = middle
            else:
                low = middle + 1
        due = [name for name, interval in self.intervals.items() if low % interval == 0]
        name = due[step - self._steps(low - 1)]
        return Turn(name, low // self.intervals[name] - 1)

    def shares(self) -> dict[str, float]:
        """The share of all steps that each task gets in the long run."""
        rates = {name: 1.0 / interval for name, interval in self.intervals.items()}
        total = sum(rates.values())
        return {name: rate / total for name, rate in rates.items()}


class Sampling:
    """One seeded draw for each step, with probabilities in proportion to the weights.

    Draws come from Philox keyed by (seed, block of steps), which gives the same numbers on every machine. The visits
    need the draws of all earlier steps; they are counted a block at a time and kept.

    Args:
        weights: task name -> relative probability; 0 never trains.
        seed: of the draws.
    """

    _BLOCK = 4096

    def __init__(self, weights: dict[str, float], seed: int):
        values = np.array(list(weights.values()), dtype=np.float64)
        if not weights or not np.isfinite(values).all() or (values < 0).any() or values.sum() <= 0:
            raise UserError(
                "the task weights are no probabilities", got=dict(weights), allowed="numbers of 0 or more, at least one above 0"
            )
        if seed < 0:
            raise UserError("the seed of the schedule is negative", got=seed, allowed="0 or more")
        self.weights, self.seed = dict(weights), seed
        self._names = list(weights)
        self._edges = np.cumsum(values) / np.cumsum(values)[-1]  # the last edge is exactly 1, above every draw
        self._blocks: list[tuple[np.ndarray, np.ndarray]] = []  # (task index, visit) of each step of a block
        self._trained = np.zeros(len(values), dtype=np.int64)  # turns of each task in all the blocks so far

    def _extend(self):
        """Draw the next block of steps and count its visits."""
        draws = np.random.Generator(np.random.Philox(key=[self.seed, len(self._blocks)])).random(self._BLOCK)
        chosen = np.searchsorted(self._edges, draws, side="right").astype(np.int32)
        visits = np.empty(self._BLOCK, dtype=np.int64)
        for task in range(len(self._names)):
            mine = chosen == task
            visits[mine] = self._trained[task] + np.arange(mine.sum())
            self._trained[task] += mine.sum()
        self._blocks.append((chosen, visits))

    def at(self, step: int) -> Turn:
        """The turn of a step, counted from 0."""
        assert step >= 0
        block, place = divmod(step, self._BLOCK)
        while len(self._blocks) <= block:
            self._extend()
        chosen, visits = self._blocks[block]
        return Turn(self._names[chosen[place]], int(visits[place]))

    def shares(self) -> dict[str, float]:
        """The share of all steps that each task gets in the long run."""
        total = sum(self.weights.values())
        return {name: weight / total for name, weight in self.weights.items()}


def build_schedule(kind: str, tasks, seed: int) -> Rotation | Sampling:
    """The schedule of a run: "rotation" over the tasks' intervals or "sampling" by their weights.

    Raises UserError for another kind and for two tasks of one name.
    """
    names = [task.name for task in tasks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError("two tasks have one name", got=", ".join(twice), fix="rename one of them")
    if kind == "rotation":
        return Rotation({task.name: task.interval for task in tasks})
    if kind == "sampling":
        return Sampling({task.name: task.weight for task in tasks}, seed)
    raise UserError("unknown schedule", got=kind, allowed=", ".join(SCHEDULES))
