"""`imp_ds train` on two ranks that draw their tasks, with and without measuring interference on the way."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from imp_ds.recipes import get_recipe
from imp_ds.train.schedule import build_schedule
from ranks import command, run_ranks

pytestmark = pytest.mark.distributed
STEPS = 6


@pytest.fixture(scope="module")
def runs(digits_corpus, tmp_path_factory):
    """The folders of two runs, of which the first measures interference after steps 3 and 6."""
    folders = []
    for every in (3, 0):
        folder = tmp_path_factory.mktemp(f"every_{every}")
        settings = {
            "train.schedule": "sampling_per_rank", "train.steps": STEPS, "train.log_every": 1, "train.interference_every": every,
            "train.interference_samples": 2, "model.num_hidden_layers": 2, "data.root": digits_corpus, "data.workers": 0,
            "evaluations": "[]",
        }  # fmt: skip
        line = ["train", "digits_debug", "--output_dir", folder / "run", *(f"--set={k}={v}" for k, v in settings.items())]
        run_ranks(command, *line, ranks=2, folder=folder / "logs", limit_s=90)
        folders.append(folder / "run")
    return folders


def steps(folder) -> list[dict]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "train"]


def test_each_step_is_told_by_the_tasks_of_its_ranks(runs):
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


def test_interference_is_measured_at_intervals_and_changes_nothing(runs):
    measured, plain = ([{task: values["loss"] for task, values in line["tasks"].items()} for line in steps(f)] for f in runs)
    assert measured == plain and len(plain) == STEPS  # every bit
    events = EventAccumulator(str(runs[0] / "tensorboard")).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("interference/")]
    names = [task.name for task in get_recipe("digits_debug").tasks]
    weight = tags[0].removeprefix("interference/").split("/")[0]
    assert f"interference/{weight}/{names[0]}_on_{names[1]}" in tags and f"interference/{weight}/between_tasks" in tags
    assert [event.step for event in events.Scalars(tags[0])] == [3, 6]
    assert [event.step for event in events.Images("interference")] == [3, 6]
    assert (runs[0] / "interference.png").exists() and not (runs[1] / "interference.png").exists()
