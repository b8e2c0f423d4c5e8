"""`imp_ds train` on two ranks that draw their tasks, and measure interference after every second step; resumed, they do not."""

import json
import shutil

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.ranks import command, run_ranks
from imp_ds.recipes import get_recipe
from imp_ds.train.schedule import build_schedule

pytestmark = pytest.mark.distributed
STEPS, SAVED = 6, 3


@pytest.fixture(scope="module")
def runs(digits_corpus, tmp_path_factory):
    """The folders of a run that measures interference after every second step, and of one that goes on from its checkpoint of
    step 3 without."""
    first, resumed = (tmp_path_factory.mktemp(name) for name in ("first", "resumed"))
    for folder, changes, options in ((first, {"train.interference_every": 2}, []), (resumed, {}, ["--resume", "latest"])):
        if folder == resumed:
            shutil.copytree(first / "run", resumed / "run")
            shutil.rmtree(resumed / "run" / "checkpoints" / f"step_{STEPS:08}")
        settings = changes | {
            "train.schedule": "sampling_per_rank", "train.steps": STEPS, "train.log_every": 1, "train.save_every": SAVED,
            "train.interference_samples": 2, "model.num_hidden_layers": 2, "data.root": digits_corpus, "data.workers": 0,
            "evaluations": "[]",
        }  # fmt: skip
        line = ["train", "digits_debug", "--output_dir", folder / "run", *(f"--set={k}={v}" for k, v in settings.items())]
        run_ranks(command, *line, *options, ranks=2, folder=folder / "logs", limit_s=90)
    return first / "run", resumed / "run"


def steps(folder) -> list[dict]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "train"]


def test_each_step_is_reported_by_the_tasks_of_its_ranks(runs):
    run = get_recipe("digits_debug")
    schedule = build_schedule("sampling_per_rank", run.tasks, run.train.seed, groups=2)
    mixtures = [schedule.mixture(step) for step in range(STEPS)]
    assert any(len(mixture) == 2 for mixture in mixtures)
    for line, mixture in zip(steps(runs[0]), mixtures, strict=True):
        assert {task: values["steps"] for task, values in line["tasks"].items()} == mixture
        # a rank's share of a task's batch
        examples = sum(share * run.task(task).batch_size for task, share in mixture.items())
        assert line["examples_per_s"] * line["step_seconds"] == pytest.approx(examples)
        assert all(0 < values["loss"] < 20 and "grad_norm" in values for values in line["tasks"].values())


def test_neither_measuring_nor_resuming_changes_a_bit(runs):
    measured, resumed = ([{task: values["loss"] for task, values in line["tasks"].items()} for line in steps(f)] for f in runs)
    assert measured == resumed and len(resumed) == STEPS
    assert len({loss for line in measured[SAVED:] for loss in line.values()}) > 1


def test_interference_is_reported_at_its_intervals(runs):
    events = EventAccumulator(str(runs[0] / "tensorboard")).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("interference/")]
    names = [task.name for task in get_recipe("digits_debug").tasks]
    weight = tags[0].removeprefix("interference/").split("/")[0]
    assert f"interference/{weight}/{names[0]}_on_{names[1]}" in tags and f"interference/{weight}/between_tasks" in tags
    assert [event.step for event in events.Scalars(tags[0])] == [2, 4, 6]
    assert [event.step for event in events.Images("interference")] == [2, 4, 6]
    assert (runs[0] / "interference.png").exists()
