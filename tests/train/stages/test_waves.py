"""Which stages are left, what stands in their way, and which are trained beside each other."""

import json
from pathlib import Path

import pytest

from imp_ds.config import DataSettings, RunConfig, TrainSettings
from imp_ds.errors import UserError
from imp_ds.families.uni_moe.settings import UniMoeSettings
from imp_ds.modalities.messages.view import MessagesView
from imp_ds.modalities.views import Views
from imp_ds.objectives import NextToken
from imp_ds.stages import Stage, StagedRun, model_folder
from imp_ds.tasks import Source, Task
from imp_ds.train.stages.job import Job
from imp_ds.train.stages.waves import to_train, waves

LLAMA = {"model_type": "llama"}
# language -> image, speech -> all
NEEDS = {"language": LLAMA, "image": "stage:language", "speech": "stage:language", "all": "stage:image"}


def one(name: str, language_model, **train) -> RunConfig:
    view = Views(messages=MessagesView(length=64))
    task = Task(name="chat", source=Source(path=".", messages="messages"), views=view, objectives=[NextToken()], batch_size=4)
    model = UniMoeSettings(language_model=language_model)
    return RunConfig(name=name, model=model, data=DataSettings(), tasks=[task], train=TrainSettings(steps=2, **train))


@pytest.fixture
def staged() -> StagedRun:
    stages = [Stage(name=name, run=one(name, part)) for name, part in NEEDS.items()]
    stages[3].run.train.init_from = "stage:speech"
    return StagedRun(name="mine", stages=stages)


def finish(staged: StagedRun, out: Path, *names: str) -> None:
    """What is left of a stage that was trained and exported, as far as it is looked at."""
    for name in names:
        folder = model_folder(out, name)
        folder.mkdir(parents=True)
        staged.run_of(name, out).save(folder)
        (folder / "config.json").write_text(json.dumps({}))


def test_a_new_folder_trains_all_and_one_that_is_resumed_what_is_left(staged, tmp_path):
    assert to_train(staged, tmp_path / "new", None, None) == ([Job(name) for name in NEEDS], [])
    finish(staged, tmp_path, "language", "speech")
    # the first that is left may have begun: what --resume says is of it; those behind it are new, or were begun side by side
    jobs, finished = to_train(staged, tmp_path, None, "latest")
    assert jobs == [Job("image", "latest"), Job("all", "auto")] and finished == ["language", "speech"]
    assert to_train(staged, tmp_path, "language", "auto") == ([], ["language"])
    assert to_train(staged, tmp_path, "image", None) == ([Job("image")], [])
    assert to_train(staged, tmp_path, "image", "1200") == ([Job("image", "1200")], [])


def test_a_folder_with_a_part_of_a_model_is_not_finished(staged, tmp_path):
    model_folder(tmp_path, "language").mkdir(parents=True)
    assert [job.stage for job in to_train(staged, tmp_path, None, "auto")[0]] == list(NEEDS)


@pytest.mark.parametrize(
    "chosen, resume, parts",
    [
        ("all", None, ["stage all starts from the model of stage image", "image/model is not there", "--stage image first"]),
        ("imag", None, ["unknown stage", "did you mean image"]),
        (None, None, ["holds stages already", "language, speech", "--resume auto"]),
        (None, "100", ["--resume STEP is of one stage", "--stage NAME"]),
    ],
)
def test_what_stands_in_the_way_is_said(staged, chosen, resume, parts, tmp_path):
    finish(staged, tmp_path, "language", "speech")
    with pytest.raises(UserError) as error:
        to_train(staged, tmp_path, chosen, resume)
    text = str(error.value)
    assert [part for part in parts if part not in text] == [], text


@pytest.mark.parametrize("resume", [None, "auto"])
def test_a_folder_of_something_else_is_refused(staged, resume, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="the output folder is not empty"):
        to_train(staged, tmp_path, None, resume)
    with pytest.raises(UserError, match="the output folder is a file"):
        to_train(staged, tmp_path / "notes.txt", None, resume)


def test_a_finished_stage_that_is_another_now_is_named(staged, tmp_path):
    finish(staged, tmp_path, "language")
    changes = {"optimizer.peak_rate=0.5": "optimizer.peak_rate: 0.001 -> 0.5", "train.steps=3": "train.steps: 2 -> 3"}
    for change, line in changes.items():
        with pytest.raises(UserError) as error:
            to_train(staged.override([f"language.{change}"]), tmp_path, None, "auto")
        assert "stage language is finished, and was trained differently" in str(error.value) and line in str(error.value)
    # where samples lie is none of its weights' business
    assert to_train(staged.override(["*.data.root=elsewhere"]), tmp_path, None, "auto")[1] == ["language"]


@pytest.mark.parametrize(
    "world, expected",
    [
        (2, [["language"], ["image", "speech"], ["all"]]),
        (4, [["language"], ["image", "speech"], ["all"]]),
        (6, [["language"], ["image", "speech"], ["all"]]),
    ],
)
def test_stages_that_do_not_need_each_other_are_trained_at_a_time(staged, world, expected):
    jobs = [Job(name) for name in NEEDS]
    found = waves(staged, jobs, world, side_by_side=True)
    assert [[job.stage for job in wave] for wave in found] == expected
    assert [job.alone for wave in found for job in wave] == [True, False, False, True]
    assert waves(staged, jobs, world, side_by_side=False) == [[job] for job in jobs]


def test_where_nothing_can_be_side_by_side_it_is_refused(staged):
    jobs = [Job(name) for name in NEEDS]
    with pytest.raises(UserError, match="side by side on two ranks or more"):
        waves(staged, jobs, 1, side_by_side=True)
    with pytest.raises(UserError, match="ranks that can be cut into equal parts"):
        waves(staged, jobs, 3, side_by_side=True)  # two stages on three ranks
    # what is left when it is resumed: one stage, or two of which one starts from the other
    assert waves(staged, jobs[:1], 2, side_by_side=True) == [[jobs[0]]]
    left = [job for job in jobs if job.stage in ("image", "all")]
    assert [[job.stage for job in wave] for wave in waves(staged, left, 2, side_by_side=True)] == [["image"], ["all"]]
