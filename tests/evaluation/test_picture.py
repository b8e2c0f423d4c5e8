"""The picture of the results: what its curves hold, and that it is a picture of the promised size."""

import json

import pytest
from PIL import Image

from imp_ds.evaluation.metric import ACCURACY, RETRIEVAL, Metric, Panel, Shown
from imp_ds.evaluation.picture import curves, draw, panels_of, training_curves

MAIN = {
    "zero_shot/image/top1": Shown("zero-shot", panel=ACCURACY),
    "retrieval/image/image_to_text/R@1": Shown("R@1", panel=RETRIEVAL),
    "tuned/image/top1": Shown("tuned", panel=ACCURACY, curve=", tuned"),
    "heads/image/top1": Shown("heads", panel=ACCURACY, curve=", head", dashed=True),
}  # fmt: skip
LATENCY = Panel("Latency", "time", "median")


def evaluation(split: str, step: int, results: dict) -> dict:
    metrics = {name: Metric(name, value, "share", "higher", MAIN.get(name)).facts() for name, value in results.items()}
    line = {"kind": "evaluation", "split": split, "step": step, "results": results, "metrics": metrics, "usage": {}}
    return json.loads(json.dumps(line))


def measured(step: int, value: float) -> dict:
    """A line with a metric of another package."""
    metric = Metric("latency/image/p50", value, "ms", "lower", Shown("latency", panel=LATENCY))
    results, facts = {metric.name: value}, {metric.name: metric.facts()}
    return {"kind": "evaluation", "split": "validation", "step": step, "results": results, "metrics": facts, "usage": {}}


HISTORY = [
    {"kind": "train", "step": 10, "tasks": {"a": {"loss": 1.0, "accuracy/x": 0.25, "accuracy/y": 0.75}, "b": {"loss": 2.0}}},
    evaluation("validation", 10, {"zero_shot/image/top1": 0.5, "zero_shot/image/top5": 0.9}),
    {"kind": "train", "step": 20, "tasks": {"a": {"loss": None, "accuracy/x": 1.0, "accuracy/y": None}}},
    evaluation("validation", 20, {"zero_shot/image/top1": 0.75, "retrieval/image/image_to_text/R@1": 0.1}),
    evaluation("test", 20, {"zero_shot/image/top1": 0.7}),
]


def points(history: list[dict], split: str, panel: Panel) -> dict:
    return {name: (curve.steps, curve.values) for name, curve in curves(history, split, panel).items()}


def test_curves_by_hand():
    assert points(HISTORY, "validation", ACCURACY) == {"image": ([10, 20], [50.0, 75.0])}
    assert points(HISTORY, "test", ACCURACY) == {"image": ([20], [70.0])}
    assert points(HISTORY, "validation", RETRIEVAL) == {"image_to_text": ([20], [10.0])}
    results = {"tuned/image/top1": 0.5, "tuned/image/top5": 0.9, "zero_shot/image/top1": 0.25, "heads/image/top1": 0.75}
    named = {"image, tuned": ([3], [50.0]), "image": ([3], [25.0]), "image, head": ([3], [75.0])}
    assert points([evaluation("test", 3, results | {"heads/image/loss": 1.5})], "test", ACCURACY) == named
    assert training_curves(HISTORY) == {"a": ([10, 20], [50.0, 100.0])}  # (25 + 75) / 2, then x alone


def test_a_metric_of_another_package_has_the_panel_that_it_names():
    history = [*HISTORY, measured(10, 12.5), measured(20, 11.0), measured(30, None)]
    assert panels_of(history) == [ACCURACY, RETRIEVAL, LATENCY] and panels_of(HISTORY) == [ACCURACY, RETRIEVAL]
    (curve,) = curves(history, "validation", LATENCY).values()
    assert (curve.steps, curve.values, curve.metric.written()) == ([10, 20], [12.5, 11.0], "11 ms")


@pytest.mark.parametrize(
    "history, usage, layers, size",
    [
        (HISTORY, {"image": [[0.25, 0.75], [0.5, 0.5]], "text": [[1.0, 0.0], [0.5, 0.5]]}, [1, 3], (2470, 676)),
        (HISTORY, {"image": [[1 / 64] * 64] * 12}, [], (2470, 676)),
        (HISTORY[:2], {"image": [[1 / 64] * 64] * 12}, [], (1690, 676)),
        (HISTORY, {}, [], (1690, 676)),
        (HISTORY[:2], {}, [], (1040, 676)),
        ([], {}, [], (1040, 676)),
        ([*HISTORY, measured(10, 12.5)], {"image": [[0.5, 0.5]]}, [], (3250, 676)),
    ],
)
def test_a_png_is_written_with_and_without_experts(tmp_path, history, usage, layers, size):
    draw(history, usage, tmp_path / "results.png", title="a run", layers=layers)
    with Image.open(tmp_path / "results.png") as picture:
        assert picture.format == "PNG" and picture.size == size
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 20  # not blank
