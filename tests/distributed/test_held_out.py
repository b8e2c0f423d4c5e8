"""Validation losses, the best checkpoint and patience, of runs on one and two ranks, and of one that stops and goes on."""

import json
import shutil
from pathlib import Path

import held_out_recipe
import pytest

from helpers.ranks import Ranks, command, end_well, run_ranks
from imp_ds.errors import UserError
from imp_ds.train.checkpoint import steps
from imp_ds.train.trained_run import checkpoint_step

pytestmark = pytest.mark.distributed
SCORE, PATIENCE = "validation/shade/loss", 2
RECIPE = f"{Path(held_out_recipe.__file__)}:pictures"


def line(root: Path, out: Path, **changes) -> list[str]:
    settings = {"data.root": root, "train.best": SCORE, "train.patience": PATIENCE} | changes
    return ["train", RECIPE, "--output_dir", out, *(f"--set={path}={value}" for path, value in settings.items())]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    held_out_recipe.write_corpus(root)
    return root


@pytest.fixture(scope="module")
def runs(root, tmp_path_factory):
    """Folders of a run on one rank, of one on two with micro-batches, and of the first resumed at its checkpoint of step 4."""
    one, two, again = (tmp_path_factory.mktemp(name) for name in ("one", "two", "again"))
    worlds = [
        Ranks(command, *line(root, one / "run"), ranks=1, folder=one / "logs"),
        Ranks(command, *line(root, two / "run", **{"tasks.caption.micro_batches": 2}), ranks=2, folder=two / "logs"),
    ]
    end_well(worlds, 120)
    half = {"train.steps": 4, "train.eval_every": 1, "optimizer.decay_steps": 10}
    run_ranks(command, *line(root, again / "run", **half), ranks=1, folder=again / "first", limit_s=90)
    run_ranks(command, *line(root, again / "run"), "--resume", "latest", ranks=1, folder=again / "logs", limit_s=90)
    return {"one": one, "two": two, "again": again}


def scores(folder: Path) -> dict[int, dict]:
    """{step: what was measured on validation}"""
    lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    return {one["step"]: one["results"] for one in lines if one["kind"] == "evaluation" and one["split"] == "validation"}


def expected(found: dict[int, dict]) -> tuple[int, int]:
    """(step of the best score, step at which the run stops) by the definition; the score of step 0 does not count."""
    best, waited = None, 0
    for step in sorted(found.keys() - {0}):
        waited = 0 if best is None or found[step][SCORE] < found[best][SCORE] else waited + 1
        best = step if waited == 0 else best
        if waited == PATIENCE:
            return best, step
    return best, max(found)


def test_the_loss_is_that_of_the_whole_split(runs):
    """Two batches of four are all eight rows, so the loss of the head's task is the head's own, which another path computes."""
    for found in scores(runs["one"]).values():
        assert found[SCORE] == pytest.approx(found["heads/shade/loss"], rel=1e-5)
        assert 0 < found["validation/caption/loss"] < 10


def test_two_ranks_measure_what_one_does(runs):
    """Before the first step, with the same weights: samples are compared with those of the other rank, in micro-batches too."""
    one, two = (scores(runs[name])[0] for name in ("one", "two"))
    names = ["validation/caption/loss", SCORE]
    assert [two[name] for name in names] == pytest.approx([one[name] for name in names], rel=1e-5)


def test_a_task_without_a_validation_split_is_named_once(runs):
    output = (runs["one"] / "logs" / "rank0.log").read_text()
    assert output.count("no validation loss: more_shade has no validation split") == 1
    assert all("validation/more_shade/loss" not in found for found in scores(runs["one"]).values())


def test_patience_stops_the_run_on_all_ranks(runs):
    for name in ("one", "two"):
        found = scores(runs[name])
        best, stop = expected(found)
        assert stop == max(found) < 10
        results = json.loads((runs[name] / "run" / "results.json").read_text())
        assert results["train/steps"] == stop and results["best/step"] == best
        assert results[f"best/{SCORE}"] == found[best][SCORE] and results["best/evaluations_since"] == PATIENCE
        said = f"stopped after step {stop}: {SCORE} was best at step {best}"
        assert (runs[name] / "logs" / "rank0.log").read_text().count(said) == 1


def test_the_best_checkpoint_outlives_the_others(runs):
    """One is kept beside it, the last."""
    for name in ("one", "two"):
        best, stop = expected(scores(runs[name]))
        assert steps(runs[name] / "run") == [best, stop]
        assert checkpoint_step(runs[name] / "run", "best") == best


def test_a_resumed_run_remembers_score_and_patience(runs):
    """To the last bit: what it measured, when it stopped, which checkpoint is kept."""
    one, again = (scores(runs[name]) for name in ("one", "again"))
    assert one == again
    assert steps(runs["one"] / "run") == steps(runs["again"] / "run")
    states = [json.loads((_newest(runs[name]) / "state.json").read_text())["best"] for name in ("one", "again")]
    assert states[0] == states[1] and states[0]["waited"] == PATIENCE


def test_a_run_out_of_patience_is_finished_until_it_gets_more(root, runs, tmp_path):
    shutil.copytree(runs["one"] / "run", tmp_path / "run")
    ended = run_ranks(command, *line(root, tmp_path / "run"), "--resume", "auto", ranks=1, folder=tmp_path / "a", limit_s=60)
    assert "finished" in ended.outputs[0]
    before = max(steps(tmp_path / "run"))
    more = line(root, tmp_path / "run", **{"train.patience": 20, "train.steps": before + 1, "train.eval_every": 0})
    run_ranks(command, *more, "--resume", "auto", ranks=1, folder=tmp_path / "b", limit_s=60)
    assert max(steps(tmp_path / "run")) == before + 1


def test_a_score_that_is_not_there_is_refused_at_the_start(root, tmp_path):
    ended = Ranks(
        command, *line(root, tmp_path / "run", **{"train.best": "validation/shades/loss"}), ranks=1, folder=tmp_path / "logs"
    ).wait(60)
    assert ended.codes != [0]
    for text in ("train.best names no score of this run", "did you mean validation/shade/loss", "heads/shade/top1"):
        assert text in ended.outputs[0]
    assert not steps(tmp_path / "run")


def test_a_run_without_a_best_checkpoint_says_so(runs, tmp_path):
    shutil.copytree(runs["one"] / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step_{checkpoint_step(tmp_path / 'run', 'best'):08}")
    with pytest.raises(UserError, match="no longer there"):
        checkpoint_step(tmp_path / "run", "best")


def _newest(folder: Path) -> Path:
    return folder / "run" / "checkpoints" / f"step_{max(steps(folder / 'run')):08}"
