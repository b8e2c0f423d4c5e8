"""`imp_ds train` on two ranks: asked to stop it saves, ends with code 75 and goes on to the same losses; a rank that dies,
hangs or fails ends the other, with one message."""

import json
import signal
from pathlib import Path

import pytest
import survival_worker
from survival_worker import STEP

from helpers.ranks import Ended, Ranks, command, run_ranks

pytestmark = pytest.mark.distributed
STEPS = 10


def line(corpus: Path, output_dir: Path, **train) -> list[str]:
    changes = {"train.ep_size": 2, "train.steps": STEPS, "train.log_every": 1, "data.root": corpus, "data.workers": 1}
    changes |= {"model.num_hidden_layers": 2, "evaluations": "[]"} | {f"train.{name}": value for name, value in train.items()}
    return ["train", "digits_debug", "--output_dir", str(output_dir), "--resume", "auto"] + [
        f"--set={path}={value}" for path, value in changes.items()
    ]


def interrupted(happening: str, culprit: str, corpus: Path, folder: Path, **train) -> Ended:
    arguments = line(corpus, folder / "run", **train)
    return Ranks(survival_worker.train, happening, culprit, *arguments, ranks=2, folder=folder / "logs").wait(90)


def losses(folder: Path) -> dict[int, dict]:
    records = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    return {record["step"]: record["tasks"] for record in records if record["kind"] == "train"}


@pytest.fixture(scope="module")
def straight(digits_corpus, tmp_path_factory) -> dict[int, dict]:
    """The steps of the run that nothing happened to."""
    folder = tmp_path_factory.mktemp("straight")
    run_ranks(command, *line(digits_corpus, folder / "run"), ranks=2, folder=folder / "logs", limit_s=90)
    return losses(folder)


@pytest.mark.parametrize("happening, culprit", [("usr1", "1"), ("term", "all")])
def test_a_run_asked_to_stop_saves_and_goes_on_as_if_nothing_had_been(happening, culprit, digits_corpus, straight, tmp_path):
    ended = interrupted(happening, culprit, digits_corpus, tmp_path)
    assert ended.codes == [75, 75], str(ended)
    # noted in the step after STEP, or after its exchange: then in the next one
    [folder] = (tmp_path / "run" / "checkpoints").glob("step_*")
    step = int(folder.name.removeprefix("step_"))
    assert step in (STEP + 1, STEP + 2)
    name = "SIGUSR1 to rank 1" if happening == "usr1" else "SIGTERM to rank 0 and 1 more"
    output = "".join(ended.outputs)
    assert output.count(f"stopped after step {step} by {name}\n  saved:   {folder}\n") == 1, str(ended)
    assert "Traceback" not in output and "error" not in output, str(ended)
    again = run_ranks(command, *line(digits_corpus, tmp_path / "run"), ranks=2, folder=tmp_path / "again", limit_s=90)
    assert f"resuming from {folder}" in again.outputs[0]
    found = losses(tmp_path)
    assert len(found) == STEPS
    for number, tasks in straight.items():
        for task, values in tasks.items():
            assert found[number][task]["loss"] == values["loss"], (number, task)  # exactly


@pytest.mark.parametrize("happening, culprit", [("killed", "1"), ("killed", "0"), ("sleeping", "1"), ("failing", "1")])
def test_one_rank_ends_the_other_with_one_message(happening, culprit, digits_corpus, tmp_path):
    ended = interrupted(happening, culprit, digits_corpus, tmp_path, hang_timeout_s=5)
    codes = {"killed": -signal.SIGKILL, "sleeping": 1, "failing": 1}
    expected = [1, 1]
    expected[int(culprit)] = codes[happening]
    assert ended.codes == expected, str(ended)
    output = "".join(ended.outputs)
    assert output.count("error: ") == 1 and f"error: rank {culprit} (process " in output, str(ended)
    assert f"step {STEP}, " in output, str(ended)
    words = {"killed": "died", "sleeping": "hangs: no progress for", "failing": "failed: KeyError: 'a fault of this rank'"}
    assert words[happening] in output
    assert output.count("Traceback") == (happening == "failing")
