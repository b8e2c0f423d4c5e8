"""The page of a run: what it says, that it needs nothing beside itself, and that damaged and unfinished runs have one too."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from imp_ds.commands.report.charts import Curve, chart, shares
from imp_ds.commands.report.command import report
from imp_ds.errors import UserError
from imp_ds.evaluation.metric import Metric, Shown, by_name
from imp_ds.recipes import get_recipe

EVIL = '<script>alert("x")</script>\x1b'
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def metrics(top1: float) -> list[Metric]:
    return [
        Metric("zero_shot/image/top1", top1, "share", "higher", Shown("zero-shot")),
        Metric("validation/image_text/loss", 2 - top1, "nats", "lower", Shown("validation loss")),
    ]


def evaluation(step: int, top1: float, split: str = "validation") -> dict:
    found = metrics(top1)
    facts = {metric.name: metric.facts() for metric in found}
    usage = {"image": [[0.25, 0.75]]}
    return {"kind": "evaluation", "step": step, "split": split, "results": by_name(found), "metrics": facts, "usage": usage}


def training(step: int, loss: float | None) -> dict:
    """Ten steps of 0.5 s at 0.002 TF/s: 10^10 FLOPs."""
    tasks = {"image_text": {"steps": 10, "loss": loss, "grad_norm": 1.0}}
    experts = {"vision": [{"usage": [0.1, 0.9]}]}
    return {
        "kind": "train", "step": step, "tasks": tasks, "experts": experts, "examples_per_s": 20.0, "step_seconds": 0.5,
        "data_wait_share": 0.0, "tflops": 0.002, "mfu": 0.5, "learning_rate": 1e-3, "memory_gib": 1.5,
        "shares": {"image_text": 1.0},
    }  # fmt: skip


def write_run(folder, *, finished: bool = True):
    """A run of 40 steps, of whose files some lines are damaged."""
    folder.mkdir(parents=True)
    get_recipe("digits_debug").override(["train.steps=40", "data.root=<root>"]).save(folder)
    lines = [training(10, 3.0), evaluation(10, 0.2), training(20, None), evaluation(20, 0.6), training(30, 1.0)]
    lines.append(training(40, 0.5))
    lines += [evaluation(40, 0.5), evaluation(40, 0.55, "test")] if finished else []
    text = [json.dumps(line) for line in lines]
    (folder / "metrics.jsonl").write_text("\n".join([*text[:2], '{"kind": "train"}', "no json", *text[2:]]) + '\n{"kind": "tra')
    asked = [{"evaluation": "sums", "prompt": EVIL, "answer": f"answer {n}", "reference": "two"} for n in range(9)]
    (folder / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))
    left_out = {"source": "images[train]", "key": EVIL, "reason": "not readable", "detail": "cut"}
    left_out = {"step": 3, "task": "image_text"} | left_out
    (folder / "rejected.jsonl").write_text(json.dumps(left_out) + "\n")
    if finished:
        final = [*metrics(0.55), Metric("train/steps", 40, "count"), Metric("train/seconds", 75.0, "s")]
        (folder / "results.json").write_text(json.dumps(by_name(final)))
        (folder / "results_units.json").write_text(json.dumps({metric.name: metric.facts() for metric in final}))
    return folder


@pytest.fixture
def page(tmp_path):
    assert "3 damaged lines" in report(write_run(tmp_path / "run"))
    return (tmp_path / "run" / "report.html").read_text()


def test_it_says_what_was_trained_at_what_cost(page):
    for text in (
        "finished after 40 of 40 steps", "1 min 15 s", "4e+10 (0.002 TF/s)", "1.50 GiB", "images (folder)", "data.root",
        "changed from the recipe digits_debug", "&lt;root&gt;", "sums: 6 of 9", "images[train]", "not readable", "metrics.jsonl",
    ):  # fmt: skip
        assert text in page, text


def test_it_has_final_and_best_scores(page):
    """Best on validation: 60 % at step 20; on the test split 55 %."""
    row = re.search(r"<td>zero_shot/image/top1<td class=n>55.0 %<td class=n>60.0 %<td class=n>20", page)
    assert row is not None
    assert re.search(r"<td>validation/image_text/loss<td class=n>1.450<td class=n>1.400<td class=n>20", page)


def test_it_needs_nothing_beside_itself_and_escapes_what_others_wrote(page):
    assert "<script" not in page and "\x1b" not in page and "&lt;script&gt;" in page
    assert not re.search(r"(?:src|href)=[\"']?(?!data:|#)", page) and "url(" not in page and "@import" not in page


def test_a_run_that_is_not_through_has_a_page(tmp_path):
    report(write_run(tmp_path / "run", finished=False), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "not finished (going on, or ended early): 40 of 40 steps" in page and "Loss by task" in page


def test_a_run_without_anything_has_a_page(tmp_path):
    (tmp_path / "run").mkdir()
    get_recipe("digits_debug").save(tmp_path / "run")
    report(tmp_path / "run")
    assert "not known: no checkpoint yet" in (tmp_path / "run" / "report.html").read_text()


def test_stages_are_sections_of_one_page(tmp_path):
    for name in ("first", "second"):
        write_run(tmp_path / "staged" / name)
    assert "2 stages" in report(tmp_path / "staged")
    page = (tmp_path / "staged" / "report.html").read_text()
    assert page.count("<section") == 2 and page.index('href="#stage-first"') < page.index('id="stage-second"')


def test_what_is_no_run_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError, match="not the folder of a run"):
            report(folder)


def test_a_curve_has_a_gap_where_a_value_is_not_finite():
    drawn = chart("a < b", [Curve("x", [(0, 1.0), (1, 2.0), (2, float("nan")), (3, 4.0), (4, 3.0)], 0)], "nats")
    assert drawn.count("<polyline") == 2 and "a &lt; b" in drawn and ">nats<" in drawn and "optimizer steps" in drawn
    assert chart("empty", [Curve("x", [(0, float("nan"))], 0)], "nats") == "" == shares("none", [], [])
    assert chart("flat", [Curve("x", [(5, 2.0)], 0)], "nats").count("<circle") == 1


@pytest.mark.skipif(BROWSER is None, reason="no chromium here to look at the page with")
def test_it_is_drawn_in_a_browser(tmp_path):
    """The colours of curves and text are on it, in light and in dark."""
    report(write_run(tmp_path / "run"), tmp_path / "page.html")
    for dark, ground in ((False, (250, 250, 250)), (True, (22, 24, 27))):
        shot = tmp_path / f"{dark}.png"
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1100,1500"]
        options += ["--blink-settings=preferredColorScheme=0"] if dark else ["--blink-settings=preferredColorScheme=1"]
        options += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", (tmp_path / "page.html").as_uri()]
        subprocess.run([BROWSER, *options], check=True, capture_output=True, timeout=120)
        with Image.open(shot) as image:
            pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
        curve = (88, 166, 255) if dark else (0, 114, 178)  # --c0
        assert (pixels == ground).all(1).mean() > 0.3
        assert (np.abs(pixels.astype(int) - curve).max(1) < 25).sum() > 200
