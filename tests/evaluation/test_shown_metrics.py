"""What is shown of metrics comes from the metrics: no reader knows one by its name. All lines by hand."""

import json

import pytest
import torch

from imp_ds.commands.evaluate import results_table
from imp_ds.errors import UserError
from imp_ds.evaluation import Evaluator, Metric, Panel, Shown, by_name, evaluate
from imp_ds.evaluation.metric import by_kind, in_one_line, read_metric

FOUND = [
    Metric("left_out/image", 2.0, "count"),
    Metric("zero_shot/image/top1", 0.5, "share", "higher", Shown("zero-shot")),
    Metric("zero_shot/image/top5", 0.75, "share", "higher"),
    Metric("latency/image/p50", 12.3456, "ms", "lower", Shown("latency", "median ", Panel("Latency", "time", "median"))),
    Metric("heads/animal/loss", 1.25, "nats", "lower", Shown("heads", "loss ")),
    Metric("heads/animal/top1", 0.875, "share", "higher", Shown("heads")),
    Metric("zero_shot/sound/top1", 0.25, "share", "higher", Shown("zero-shot")),
    Metric("captioning/image/cider", 0.417, "", "higher"),
]


def test_values_are_written_with_their_units():
    written = ["2", "50.0 %", "75.0 %", "12.35 ms", "1.250", "87.5 %", "25.0 %", "0.42"]
    assert [metric.written() for metric in FOUND] == written


def test_the_line_of_the_console_has_the_main_metrics_by_kind():
    line = "zero-shot image 50.0 %, sound 25.0 %; latency image median 12.35 ms; heads animal loss 1.250 87.5 %"
    assert in_one_line(FOUND) == line and in_one_line(FOUND[:1]) == ""


def test_scores_come_first_and_kinds_together():
    kinds = [metric.name.split("/")[0] for metric in by_kind(FOUND)]
    assert kinds == ["zero_shot"] * 3 + ["latency", "heads", "heads", "captioning", "left_out"]
    table = results_table(FOUND, "a table")
    assert list(table.columns[0].cells)[:4] == ["zero-shot top1", "zero-shot top5", "zero-shot top1", "latency p50"]
    assert list(table.columns[2].cells)[-1] == "2"


def test_a_metric_is_the_same_after_json():
    lines = json.loads(json.dumps({metric.name: metric.facts() for metric in FOUND}))
    assert [read_metric(name, value, lines[name]) for name, value in by_name(FOUND).items()] == FOUND
    for damaged in ({"unit": ["s"]}, {"better": "up"}, {"shown": {"heading": "x", "panel": [1, 2, 3, 4]}}, {"shown": 3}):
        with pytest.raises((TypeError, ValueError, LookupError)):
            read_metric("a/b/c", 0.5, {**FOUND[0].facts(), **damaged})


class Yields(Evaluator):
    """Yields what it is given."""

    kind = "yields"

    def __init__(self, *found):
        self.found = found

    def run(self, model):
        yield from self.found


def test_what_an_evaluator_yields_is_taken_as_floats_or_refused_by_its_name():
    model = torch.nn.Linear(1, 1)
    bare = Metric("latency", torch.tensor(0.5), "ms", "lower", Shown("latency"))  # a name without parts
    (found,) = evaluate(model, [Yields(bare)])
    assert type(found.value) is float and in_one_line([found]) == "latency latency 0.5 ms"
    assert list(results_table([found], "a table").columns[2].cells) == ["0.5 ms"]
    with pytest.raises(UserError, match="(?s)the evaluator yields yields something else.*x/y/z.*Metric"):
        evaluate(model, [Yields(("x/y/z", 0.5))])
    with pytest.raises(UserError, match="(?s)x/y/z: better = 'up'.*higher"):
        evaluate(model, [Yields(Metric("x/y/z", 0.5, "share", "up"))])
