"""The picture of the results: what its curves hold, and that it is a picture of the promised size."""

import pytest
from PIL import Image

from imp_ds.evaluation.picture import ACCURACY, RETRIEVAL, curves, draw, training_curves


def evaluation(split: str, step: int, results: dict) -> dict:
    return {"kind": "evaluation", "split": split, "step": step, "results": results, "usage": {}}


HISTORY = [
    {"kind": "train", "step": 10, "tasks": {"a": {"loss": 1.0, "accuracy/x": 0.25, "accuracy/y": 0.75}, "b": {"loss": 2.0}}},
    evaluation("validation", 10, {"zero_shot/image/top1": 0.5, "zero_shot/image/top5": 0.9}),
    {"kind": "train", "step": 20, "tasks": {"a": {"loss": None, "accuracy/x": 1.0, "accuracy/y": None}}},
    evaluation("validation", 20, {"zero_shot/image/top1": 0.75, "retrieval/image/image_to_text/R@1": 0.1}),
    evaluation("test", 20, {"zero_shot/image/top1": 0.7}),
]


def test_curves_by_hand():
    assert curves(HISTORY, "validation", ACCURACY) == {"image": ([10, 20], [50.0, 75.0])}
    assert curves(HISTORY, "test", ACCURACY) == {"image": ([20], [70.0])}
    assert curves(HISTORY, "validation", RETRIEVAL) == {"image_to_text": ([20], [10.0])}
    results = {"tuned/image/top1": 0.5, "tuned/image/top5": 0.9, "zero_shot/image/top1": 0.25, "heads/image/top1": 0.75}
    named = {"image, tuned": ([3], [50.0]), "image": ([3], [25.0]), "image, head": ([3], [75.0])}
    assert curves([evaluation("test", 3, results | {"heads/image/loss": 1.5})], "test", ACCURACY) == named
    assert training_curves(HISTORY) == {"a": ([10, 20], [50.0, 100.0])}  # (25 + 75) / 2, then x alone


@pytest.mark.parametrize(
    "history, usage, layers, size",
    [
        (HISTORY, {"image": [[0.25, 0.75], [0.5, 0.5]], "text": [[1.0, 0.0], [0.5, 0.5]]}, [1, 3], (2470, 676)),
        (HISTORY, {"image": [[1 / 64] * 64] * 12}, [], (2470, 676)),
        (HISTORY[:2], {"image": [[1 / 64] * 64] * 12}, [], (1690, 676)),
        (HISTORY, {}, [], (1690, 676)),
        (HISTORY[:2], {}, [], (1040, 676)),
        ([], {}, [], (1040, 676)),
    ],
)
def test_a_png_is_written_with_and_without_experts(tmp_path, history, usage, layers, size):
    draw(history, usage, tmp_path / "results.png", title="a run", layers=layers)
    with Image.open(tmp_path / "results.png") as picture:
        assert picture.format == "PNG" and picture.size == size
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 20  # not blank
