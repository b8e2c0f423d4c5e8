"""Whose the folder of a run is, through the command line: ended before a checkpoint, in use, finished, changed, damaged."""

import json
import re
import time
from pathlib import Path

import pytest

from helpers.ranks import Ended, Ranks, command
from imp_ds.config import FILE_NAME, RunConfig
from imp_ds.errors import UserError
from imp_ds.overrides import apply_overrides
from imp_ds.recipes import get_recipe
from imp_ds.train import checkpoint, run_folder

PEAK = "--set=optimizer.peak_rate=0.002"


def test_a_folder_of_a_model_may_be_written_in_another_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "other").mkdir()
    run = get_recipe("talk_debug").planned("language", Path("none"))
    named = lambda folder: run.override([f"model.language_model={folder}"])  # noqa: E731
    assert run_folder.differences(named("base"), named(tmp_path / "base")) == {}
    line = 'model.language_model: "base" -> "other"'
    assert run_folder.differences(named("base"), named("other")) == {"model.language_model": line}
    assert list(run_folder.differences(named("base"), named("gone"))) == ["model.language_model"]


def start(corpus: Path, folder: Path, logs: str, *arguments: str, steps: int = 2) -> Ranks:
    """`imp_ds train` on one rank, on the first of the digits' tasks, without evaluations."""
    run = get_recipe("digits_debug")
    run.tasks, run.evaluations, run.data.root, run.data.workers = run.tasks[:1], [], str(corpus), 0
    run.train.steps = steps
    run.save(folder.parent / "recipe.json")
    line = ["train", str(folder.parent / "recipe.json"), "--output_dir", str(folder), *arguments]
    return Ranks(command, *line, ranks=1, folder=folder.parent / logs)


def end(ranks: Ranks, code: int) -> str:
    ended: Ended = ranks.wait(60)
    assert ended.codes == [code], str(ended)
    return ended.outputs[0]


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("run") / "out"


@pytest.fixture(scope="module")
def killed(digits_corpus, folder) -> str:
    """A run that is killed before its first checkpoint; what a second one said that was started meanwhile."""
    first = start(digits_corpus, folder, "first", steps=1_000_000)
    deadline = time.monotonic() + 60
    while not (folder / "metrics.jsonl").exists() and first.alive() and time.monotonic() < deadline:
        time.sleep(0.02)
    said = end(start(digits_corpus, folder, "second"), 2)
    assert first.alive()
    first.kill()
    first.wait(10)
    return said


@pytest.fixture(scope="module")
def finished(digits_corpus, folder, killed) -> str:
    """The folder taken anew by a run that finishes; what it said."""
    return end(start(digits_corpus, folder, "third"), 0)


@pytest.mark.distributed
def test_a_second_run_in_a_folder_learns_who_has_it(killed, folder):
    assert re.search(rf"another process is writing.*\n  got: +{folder}, held by process \d+ on .* since 20", killed), killed


@pytest.mark.distributed
def test_a_run_that_ended_before_its_first_checkpoint_is_started_anew(finished, folder):
    assert "ended before its first checkpoint: starting it anew" in finished
    assert [line["step"] for line in lines(folder) if line["kind"] == "train"] == [1, 2]  # nothing of the killed run
    assert RunConfig.load(folder / FILE_NAME).train.steps == 2 and checkpoint.steps(folder) == [2]
    assert len(list((folder / "tensorboard").glob("events*"))) == 1


@pytest.mark.distributed
def test_a_finished_run_says_so_and_does_nothing(finished, digits_corpus, folder):
    names = ["metrics.jsonl", "results.json", "checkpoints/latest", "checkpoints/step_00000002/manifest.json"]
    before = [(folder / name).stat().st_mtime_ns for name in names]
    said = end(start(digits_corpus, folder, "fourth", "--resume", "auto"), 0)
    assert f"finished: all 2 steps are done, the scores are in {folder / 'results.json'}" in said
    assert "step 2/2" not in said and [(folder / name).stat().st_mtime_ns for name in names] == before


@pytest.mark.distributed
def test_a_finished_run_goes_on_with_more_steps_and_what_is_asked_for(finished, digits_corpus, folder):
    """Last of the tests of this folder. Its configuration is damaged too, and taken from the checkpoint."""
    (folder / FILE_NAME).write_bytes(b"{" * 100_000)
    said = end(start(digits_corpus, folder, "fifth", PEAK, "--allow_changes", "--resume", "auto", steps=3), 0)
    assert "the one of step_00000002 is taken" in said
    assert "changed from here on: optimizer.peak_rate: 0.0012 -> 0.002" in said
    assert [line["step"] for line in lines(folder) if line["kind"] == "train"] == [1, 2, 3]
    kept = RunConfig.load(folder / FILE_NAME)
    assert (kept.train.steps, kept.optimizer.peak_rate) == (3, 0.002)


# ---- without a world: what `claim` takes and refuses


@pytest.fixture
def saved(tmp_path) -> Path:
    """The folder of a run of `digits_debug` that has a checkpoint, as far as `claim` looks at it."""
    get_recipe("digits_debug").save(tmp_path / FILE_NAME)
    (tmp_path / checkpoint.FOLDER / checkpoint.folder_name(4)).mkdir(parents=True)
    return tmp_path


FREE = ["train.steps=99", "train.log_every=7", "data.workers=3", "data.root=/elsewhere", "tasks.image_text.micro_batches=2"]
ON_REQUEST = {
    "optimizer.peak_rate=0.5": "optimizer.peak_rate: 0.0012 -> 0.5", "optimizer.clip=0.5": "optimizer.clip: 1.0 -> 0.5",
    "tasks.image_text.batch_size=16": "tasks.image_text.batch_size: 8 -> 16",
    "tasks.image_text.interval=3": "tasks.image_text.interval: 1 -> 3", "data.max_rejected=0.5": "data.max_rejected: 0.05 -> 0.5",
}  # fmt: skip
NEVER = {"train.seed=8": "train.seed: 0 -> 8", "model.hidden_size=128": "model.hidden_size: 64 -> 128"}


def resume(folder: Path, settings: list[str], allow_changes: bool = False) -> None:
    run_folder.claim(folder, apply_overrides(get_recipe("digits_debug"), settings), True, allow_changes)


@pytest.mark.parametrize("setting", FREE)
def test_what_changes_no_result_may_differ_in_silence(setting, saved, capsys):
    resume(saved, [setting])
    assert RunConfig.load(saved / FILE_NAME) == apply_overrides(get_recipe("digits_debug"), [setting])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("setting, said", ON_REQUEST.items())
def test_what_changes_training_may_differ_when_it_is_asked_for(setting, said, saved, capsys):
    before = (saved / FILE_NAME).read_bytes()
    with pytest.raises(UserError, match=f"started differently\n  got: +{said}\n(.*\n)*.*with --allow_changes these too"):
        resume(saved, [setting])
    assert (saved / FILE_NAME).read_bytes() == before
    resume(saved, [setting], allow_changes=True)
    assert capsys.readouterr().out == f"changed from here on: {said}\n"
    assert RunConfig.load(saved / FILE_NAME) == apply_overrides(get_recipe("digits_debug"), [setting])


@pytest.mark.parametrize("setting, said", NEVER.items())
def test_what_fits_no_checkpoint_may_never_differ(setting, said, saved, capsys):
    before = (saved / FILE_NAME).read_bytes()
    for more, allow in ([], False), ([], True), (["optimizer.clip=0.5"], True):
        with pytest.raises(UserError, match=f"got: +{said}\n") as refused:
            resume(saved, [setting, *more], allow)
        assert "these too" not in str(refused.value)
    assert (saved / FILE_NAME).read_bytes() == before and capsys.readouterr().out == ""


def test_a_folder_with_checkpoints_is_not_taken_without_resume(saved):
    with pytest.raises(UserError, match="holds another run(.*\n)*.*--resume auto"):
        run_folder.claim(saved, get_recipe("digits_debug"), resume=False)


@pytest.mark.parametrize("resume", [False, True])
def test_what_a_user_put_beside_a_run_without_a_checkpoint_stays(resume, tmp_path):
    get_recipe("digits_debug").save(tmp_path / FILE_NAME)
    for name in ("metrics.jsonl", "notes.txt"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match="and other things\n.*notes.txt"):
        run_folder.claim(tmp_path, get_recipe("digits_debug"), resume=resume)
    assert (tmp_path / "metrics.jsonl").read_text() == (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_of_something_else_is_refused_and_left_as_it_was(tmp_path):
    (tmp_path / "thesis.tex").write_text("all")
    with pytest.raises(UserError, match="not empty"):
        run_folder.claim(tmp_path, get_recipe("digits_debug"), resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
