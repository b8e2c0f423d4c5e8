"""Which step of a run was the best so far, by one score on validation, and how long nothing better has come."""

import math
from dataclasses import dataclass

from imp_ds.errors import UserError
from imp_ds.evaluation.metric import Metric
from imp_ds.overrides import nearest

BEST_STEP, WAITED = "best/step", "best/evaluations_since"  # in the results of a run


@dataclass
class BestScore:
    """The best value of a metric, and its step; None before the first. A checkpoint keeps it (`state`), so that a run that is
    resumed goes on as if it had never stopped.

    metric: the name.
    waited: evaluations since the best one.
    last: the step of the last evaluation that was counted: it is counted once, also where a run is resumed at it.
    unit, better: of the metric.
    """

    metric: str
    value: float | None = None
    step: int | None = None
    waited: int = 0
    last: int | None = None
    unit: str = ""
    better: str | None = None

    @classmethod
    def of(cls, metric: str | None, state: dict | None) -> "BestScore | None":
        """As a checkpoint's `state` has it, where it is of that metric; else anew. None where no metric is named."""
        if metric is None:
            return None
        return cls(**state) if state is not None and state["metric"] == metric else cls(metric)

    @property
    def is_known(self) -> bool:
        """Whether the metric was found before."""
        return self.last is not None

    def check(self, metrics: list[Metric]) -> None:
        """Raise UserError where an evaluation does not have the metric, or nothing says which way it is better."""
        scores = [metric.name for metric in metrics if metric.better is not None]
        if self.metric not in scores:
            raise UserError(
                "train.best names no score of this run", got=self.metric,
                allowed=nearest(self.metric, scores) if scores else "none: nothing is scored on validation", shared=True,
            )  # fmt: skip

    def count(self, step: int, metrics: list[Metric]) -> bool:
        """Take the scores of an evaluation after `step` steps; whether it is the best so far. Equal is not better."""
        if self.last is not None and step <= self.last:
            return step == self.step
        self.check(metrics)
        (found,) = (metric for metric in metrics if metric.name == self.metric)
        self.last, self.unit, self.better = step, found.unit, found.better
        if math.isfinite(found.value) and (self.value is None or _is_better(found, self.value)):
            self.value, self.step, self.waited = found.value, step, 0
            return True
        self.waited += 1
        return False

    def reason_to_stop(self, patience: int | None, step: int) -> str | None:
        """Why the run stops after `step` steps, in one line; None: it goes on."""
        if patience is None or self.waited < patience:
            return None
        if self.value is None:
            return f"stopped after step {step}: {self.metric} was not finite in {self.waited} evaluations (train.patience)"
        best = f"{self.metric} was best at step {self.step}, {self.value:.6g}"
        return f"stopped after step {step}: {best}; {self.waited} evaluation{'s' * (self.waited > 1)} since (train.patience)"

    def state(self) -> dict:
        """What a checkpoint keeps of it."""
        return vars(self).copy()

    def metrics(self) -> list[Metric]:
        """What stands in the results of a run: its best value, the step, and how many evaluations came after it."""
        if self.value is None:
            return []
        best = Metric(f"best/{self.metric}", self.value, self.unit, self.better)
        return [best, Metric(BEST_STEP, self.step, "count"), Metric(WAITED, self.waited, "count")]


def _is_better(found: Metric, before: float) -> bool:
    return found.value > before if found.better == "higher" else found.value < before
