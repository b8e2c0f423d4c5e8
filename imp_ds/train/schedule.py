"""Which task trains at a step: a pure function of the step, so every rank and every resumed run agrees without talking.

Alternating gradient descent gives each optimizer step to one task. `Rotation` is the rule of the released IMP trainer
(`execution/executors.py`): go round the tasks in a fixed order; each round adds 1 to a task's counter, and it trains
when the counter is a multiple of its interval. `Sampling` is the paper's wording (arXiv 2305.06324, figure 1): a task
is drawn at random at each step. Drawn for each group of ranks instead, the tasks are mixed across the ranks, never inside a
batch (Uni-Perceiver-MoE; release, `datasets/batch_sampler.py`).

Every schedule knows `at(step)`, of which task it is an occurrence on this rank; `mixture(step)`, {task: share of the ranks that
train it}, in the order of the tasks; and `shares()`, the mixture in the long run.

Shapes: S steps of a block, G groups of ranks, K tasks.
"""

from typing import NamedTuple

import numpy as np

from imp_ds.errors import UserError

SCHEDULES = ("rotation", "sampling", "sampling_per_rank")
_KEPT = 4  # blocks of draws that are kept: callers come back to the last few only


class Occurrence(NamedTuple):
    """The task that trains at a step, and how many batches of it came before: those of earlier steps, and of groups of ranks that
    come before this rank's in the same step."""

    name: str
    number: int


class Rotation:
    """Integer intervals in a fixed order.

    All counters are equal after a whole sweep over the tasks, so the first S sweeps hold sum_i floor(S / interval_i)
    steps, and a binary search finds the sweep of any step without walking there.

    Args:
        intervals: task name -> interval, in their order.
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

    def at(self, step: int) -> Occurrence:
        """The occurrence at a step, counted from 0."""
        assert step >= 0
        low, high = 1, (step + 1) * min(self.intervals.values())  # after `high` sweeps one task alone has had step + 1 steps
        while low < high:
            middle = (low + high) // 2
            if self._steps(middle) > step:
                high = middle
            else:
                low = middle + 1
        due = [name for name, interval in self.intervals.items() if low % interval == 0]
        name = due[step - self._steps(low - 1)]
        return Occurrence(name, low // self.intervals[name] - 1)

    def mixture(self, step: int) -> dict[str, float]:
        """All ranks train one task."""
        return {self.at(step).name: 1.0}

    def shares(self) -> dict[str, float]:
        """The share of all steps that each task gets in the long run."""
        rates = {name: 1.0 / interval for name, interval in self.intervals.items()}
        total = sum(rates.values())
        return {name: rate / total for name, rate in rates.items()}


class _Draws(NamedTuple):
    """A block of steps: the task that each group drew, [S, G], and how many batches of its task came before each batch of the own
    group, [S]."""

    task_SG: np.ndarray
    number_S: np.ndarray


class Sampling:
    """Seeded draws with probabilities in proportion to the weights: for each step one for every group of ranks.

    A group is made of the ranks that share experts, whatever their gates: tokens travel among them, or, where gates are constant,
    parts of a merged matrix, which is of one condition. A rank that holds all experts is a group by itself.

    Draws come from Philox keyed by (seed, block of steps), which gives the same numbers on every machine. The numbers
    of occurrences need the draws of all earlier steps, of all groups; they are counted a block at a time.

    Args:
        weights: task name -> relative probability; 0 never trains.
        seed: of the draws.
        groups: that draw a task each; 1: all ranks train the same.
        group: whose occurrences `at` gives.
    """

    _BLOCK = 4096

    def __init__(self, weights: dict[str, float], seed: int, groups: int = 1, group: int = 0):
        values = np.array(list(weights.values()), dtype=np.float64)
        if not weights or not np.isfinite(values).all() or (values < 0).any() or values.sum() <= 0:
            raise UserError(
                "the task weights are no probabilities", got=dict(weights), allowed="numbers of 0 or more, at least one above 0"
            )
        if seed < 0:
            raise UserError("the seed of the schedule is negative", got=seed, allowed="0 or more")
        assert 0 <= group < groups
        self.weights, self.seed, self.groups, self.group = dict(weights), seed, groups, group
        self._names = list(weights)
        self._edges = np.cumsum(values) / np.cumsum(values)[-1]  # the last edge is exactly 1, above every draw
        self._before_K = [np.zeros(len(values), dtype=np.int64)]  # batches of each task before block 0, 1, ...
        self._draws: dict[int, _Draws] = {}

    def at(self, step: int) -> Occurrence:
        """The occurrence at a step, counted from 0, of the own group."""
        draws, position = self._of(step)
        return Occurrence(self._names[draws.task_SG[position, self.group]], int(draws.number_S[position]))

    def mixture(self, step: int) -> dict[str, float]:
        """The share of the groups that train each task at a step."""
        draws, position = self._of(step)
        count_K = np.bincount(draws.task_SG[position], minlength=len(self._names))
        return {name: int(count) / self.groups for name, count in zip(self._names, count_K) if count}

    def shares(self) -> dict[str, float]:
        """The share of all batches that each task gets in the long run."""
        total = sum(self.weights.values())
        return {name: weight / total for name, weight in self.weights.items()}

    def _of(self, step: int) -> tuple[_Draws, int]:
        """The draws of a step's block, and the step's position in it."""
        assert step >= 0
        block, position = divmod(step, self._BLOCK)
        while len(self._before_K) <= block:
            last = len(self._before_K) - 1
            self._before_K.append(self._before_K[last] + np.bincount(self._drawn(last).ravel(), minlength=len(self._names)))
        if block not in self._draws:
            while len(self._draws) >= _KEPT:
                self._draws.pop(next(iter(self._draws)))
            task_SG = self._drawn(block)
            self._draws[block] = _Draws(task_SG, self._numbers(task_SG, self._before_K[block]))
        return self._draws[block], position

    def _drawn(self, block: int) -> np.ndarray:
        draw_SG = np.random.Generator(np.random.Philox(key=[self.seed, block])).random((self._BLOCK, self.groups))
        return np.searchsorted(self._edges, draw_SG, side="right").astype(np.int32)

    def _numbers(self, task_SG: np.ndarray, before_K: np.ndarray) -> np.ndarray:
        """Groups come one after another within a step."""
        number_S = np.empty(self._BLOCK, dtype=np.int64)
        own_S = task_SG[:, self.group]
        for task, before in enumerate(before_K):
            is_task_SG = task_SG == task
            earlier_S = np.cumsum(is_task_SG).reshape(task_SG.shape)[:, self.group] - 1  # without itself, where it is of the task
            number_S[own_S == task] = before + earlier_S[own_S == task]
        return number_S


def build_schedule(kind: str, tasks, seed: int, groups: int = 1, group: int = 0) -> Rotation | Sampling:
    """The schedule of a run: "rotation" over the tasks' intervals, "sampling" by their weights, the same on all ranks, or
    "sampling_per_rank": as the one of `groups` groups of ranks that share their experts.

    Raises UserError for another kind and for two tasks of one name.
    """
    names = [task.name for task in tasks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError("two tasks have one name", got=", ".join(twice), fix="rename one of them")
    if kind == "rotation":
        return Rotation({task.name: task.interval for task in tasks})
    weights = {task.name: task.weight for task in tasks}
    if kind == "sampling":
        return Sampling(weights, seed)
    if kind == "sampling_per_rank":
        return Sampling(weights, seed, groups, group)
    raise UserError("unknown schedule", got=kind, allowed=", ".join(SCHEDULES))
