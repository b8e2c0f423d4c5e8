"""A loss that is not finite on one rank only: all ranks skip the step, the task is named, and after a few the run stops."""

import json

import bad_loss_worker
import pytest

from imp_ds.train.ds_config import FOLDER
from ranks import Ranks

pytestmark = pytest.mark.distributed

ORDER = ["image_text", "film_text", "film_speech_text", "speech_text", "image_digit", "speech_digit"]


@pytest.fixture(scope="module", params=["cpu_zero2_ep2.json", "cpu_zero3.json"])
def run(request, digits_corpus, tmp_path_factory):
    """(how the ranks ended, the folder of the run, what each rank saw of each step)"""
    folder = tmp_path_factory.mktemp("bad_loss")
    settings = {
        "train.steps": 30, "train.ep_size": 2, "train.max_bad_steps": 2, "train.save_every": 4, "data.root": digits_corpus,
        "data.workers": 0,
    }  # fmt: skip
    line = ["train", "digits_debug", "--output_dir", str(folder / "run"), "--deepspeed_config", str(FOLDER / request.param)]
    line += [f"--set={path}={value}" for path, value in settings.items()]
    ended = Ranks(bad_loss_worker.train, str(folder), *line, ranks=2, folder=folder / "logs").wait(90)
    steps = [[json.loads(x) for x in (folder / f"steps{rank}.jsonl").read_text().splitlines()] for rank in (0, 1)]
    return ended, folder / "run", steps


def test_the_step_is_skipped_on_both_ranks(run):
    ended, _, steps = run
    assert [s["task"] for s in steps[0]] == ORDER * 2, str(ended)
    for one, other in zip(*steps, strict=True):
        spoiled = one["task"] == "speech_digit"
        assert one["finite"] and other["finite"] == (not spoiled)  # rank 0 saw nothing amiss by itself
        assert one["changed"] == other["changed"] == (not spoiled)
    assert [s["adam_steps"] for s in steps[1]] == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10, 10]


def test_the_task_is_named_and_the_run_stops_on_both_ranks(run):
    ended, _, _ = run
    assert ended.codes == [2, 2], str(ended)
    output = ended.outputs[0]
    assert "step 6: the loss of task speech_digit is not finite; nothing was updated (1 so far)" in output
    assert "error: the loss of task speech_digit was not finite at step 12\n  got:     2 skipped steps" in output
    assert "train.max_bad_steps = 2" in output and "fix: " in output
    assert "error" not in ended.outputs[1] and not any("Traceback" in text for text in ended.outputs), str(ended)


def test_what_was_saved_before_is_whole(run):
    _, folder, _ = run
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["latest", "step_00000004", "step_00000008"]
    state = json.loads((folder / "checkpoints" / "step_00000008" / "state.json").read_text())
    assert (state["step"], state["adam_steps"], state["bad_steps"]) == (8, 7, 1)
    assert not (folder / "results.json").exists()
