"""All that a run evaluates: at intervals on the validation split, at its end on the test split too."""

from collections.abc import Callable

from imp_ds.evaluation import Evaluator, Metric, build_evaluators, evaluate, expert_usage
from imp_ds.evaluation.metric import AVERAGED, of_average
from imp_ds.evaluation.missing_splits import final_split, unscored, unscored_note
from imp_ds.parallel.watchdog import Watchdog
from imp_ds.train import random_state
from imp_ds.train.engine.compilation import uncompiled
from imp_ds.train.engine.engine import Engine
from imp_ds.train.held_out.best import BestScore
from imp_ds.train.held_out.losses import ValidationLosses
from imp_ds.train.recording.monitor import Monitor

SHOWN_SAMPLES = 6


class HeldOut:
    """The evaluators of a run, the validation losses of its tasks, and its best score so far.

    Args:
        run: the RunConfig.
        state: what `BestScore.state` gave at the step that the run goes on from; None: it is new.

    All ranks make one, call its methods together, and get the same. Raises UserError for a split that cannot be read.
    """

    def __init__(self, run, engine: Engine, processor, watchdog: Watchdog | None = None, state: dict | None = None):
        self.run, self.engine, self.processor, self.watchdog = run, engine, processor, watchdog
        self.evaluators = build_evaluators(run, processor, "validation")
        self.losses = ValidationLosses(run, processor, watchdog)
        self.best = BestScore.of(run.train.best, state)
        self._last: tuple[int, list[Metric]] | None = None

    def start(self, step: int, monitor: Monitor) -> None:
        """Before training goes on from `step`: say what has no validation split, and see that `train.best` names a score, for
        which the model is evaluated as it is, where it was not found before. Raises UserError.

        monitor: records what is measured from now on.
        """
        self.monitor = monitor
        notes = [unscored_note(unscored(self.run, "validation"), "validation")]
        if self.losses.without:
            have = "has" if len(self.losses.without) == 1 else "have"
            notes.append(f"no validation loss: {', '.join(self.losses.without)} {have} no validation split")
        for note in filter(None, notes if step == 0 else []):
            self.monitor.progress.log(note)
        if self.best is not None and not self.best.is_known:
            self.best.check(self._evaluate(step))

    def evaluate(self, step: int) -> tuple[list[Metric], bool]:
        """All scores on validation after `step` steps, measured once, and whether `train.best` is the best so far there."""
        if self._last is None or self._last[0] != step:
            self._last = step, self._evaluate(step)
        results = list(self._last[1])
        return results, self.best is not None and self.best.count(step, results)

    def reason_to_stop(self, step: int) -> str | None:
        """Why the run stops, in one line; None: it goes on."""
        return None if self.best is None else self.best.reason_to_stop(self.run.train.patience, step)

    def state(self) -> dict | None:
        """What a checkpoint keeps of the best score."""
        return None if self.best is None else self.best.state()

    def best_metrics(self) -> list[Metric]:
        """The best score and its step, for the results."""
        return [] if self.best is None else self.best.metrics()

    def final(self, step: int) -> tuple[list[Metric], list[Evaluator]]:
        """The scores of a run that ends: those of the test split, with the validation losses, or of validation where there is no
        such split; and the evaluators that measured."""
        results, _ = self.evaluate(step)
        split, without = final_split(self.run)
        if without is not None:
            self.monitor.progress.log(without)
        if split != "test":
            return results, self.evaluators
        evaluators = build_evaluators(self.run, self.processor, "test")
        with uncompiled():
            scores = self._of_both(lambda: evaluate(self.engine.model, evaluators))
        self.monitor.record_evaluation(step, scores, expert_usage(evaluators), split="test")
        losses = tuple(f"{prefix}validation/" for prefix in ("", AVERAGED))
        return [*scores, *(metric for metric in results if metric.name.startswith(losses))], evaluators

    def _of_both(self, measure: Callable[[], list[Metric]]) -> list[Metric]:
        """What is measured of the model, and behind it the same of the average of its weights, where one is kept. What evaluators
        keep of a run is of the weights themselves, which come last."""
        averaged = []
        if self.engine.average is not None:
            with self.engine.average.in_place():
                averaged = [of_average(metric) for metric in measure()]
        return measure() + averaged

    def _measure(self, step: int) -> list[Metric]:
        self._progress(step, "evaluating")
        results = evaluate(self.engine.model, self.evaluators)
        for metric in self.losses.measure(self.engine):
            results.append(metric)
            self._progress(step, "evaluating, validation losses")
        return results

    def _evaluate(self, step: int) -> list[Metric]:
        with uncompiled(), random_state.kept(self.engine.device):
            results = self._of_both(lambda: self._measure(step))
        self.monitor.record_evaluation(step, results, expert_usage(self.evaluators))
        for evaluator in self.evaluators:
            if (shown := evaluator.examples(SHOWN_SAMPLES)) is not None:
                self.monitor.record_examples(step, evaluator.record, *shown, self.processor)
        return results

    def _progress(self, step: int, doing: str) -> None:
        if self.watchdog is not None:
            self.watchdog.progress(step, doing)
