"""Which step is the best, when nothing better comes any more, and what a checkpoint keeps of it."""

import math

import pytest

from imp_ds.config import TrainSettings
from imp_ds.errors import UserError
from imp_ds.evaluation.metric import Metric
from imp_ds.train.held_out.best import BestScore


def counted(values: list[float], better: str = "higher", metric: str = "zero_shot/a/top1") -> BestScore:
    """After evaluations at steps 10, 20, ..."""
    best = BestScore.of(metric, None)
    for place, value in enumerate(values, 1):
        best.count(10 * place, [Metric(metric, value, "share", better)])
    return best


@pytest.mark.parametrize(
    ("values", "better", "step", "waited"),
    [
        ([0.1, 0.3, 0.2], "higher", 20, 1),
        ([0.3, 0.1, 0.2], "lower", 20, 1),
        ([0.3, 0.3, 0.3], "higher", 10, 2),  # equal is no gain
        ([math.nan, 0.1, math.nan, math.inf], "lower", 20, 2),
        ([math.nan, math.nan], "lower", None, 2),
    ],
)
def test_the_best_by_the_direction_of_the_metric(values, better, step, waited):
    best = counted(values, better)
    assert (best.step, best.waited) == (step, waited)


def test_an_evaluation_counts_once():
    best = counted([0.2, 0.1])
    again = BestScore.of(best.metric, best.state())
    assert not again.count(20, [Metric(best.metric, 0.1, "share", "higher")])
    assert again == best and again.is_known


def test_it_stops_in_words():
    best = counted([0.2, 0.1])
    assert best.reason_to_stop(None, 20) is best.reason_to_stop(2, 20) is None
    said = "stopped after step 20: zero_shot/a/top1 was best at step 10, 0.2; 1 evaluation since (train.patience)"
    assert best.reason_to_stop(1, 20) == said
    assert "not finite in 2 evaluations" in counted([math.nan] * 2).reason_to_stop(2, 20)


def test_another_score_starts_anew():
    state = counted([0.2]).state()
    assert BestScore.of("heads/a/top1", state) == BestScore("heads/a/top1")
    assert BestScore.of(None, state) is None


def test_what_has_no_direction_is_no_score():
    metrics = [Metric("left_out/a", 3.0, "count"), Metric("heads/a/loss", 1.0, "nats", "lower")]
    with pytest.raises(UserError, match="(?s)names no score of this run.*left_out/a.*heads/a/loss"):
        BestScore.of("left_out/a", None).check(metrics)


def test_patience_needs_a_score():
    with pytest.raises(ValueError, match="train.best names none"):
        TrainSettings(steps=1, patience=2)
