"""A loss that is not finite on one rank only: all ranks skip the step, and after two the run goes back to its last checkpoint,
and on with the data that come next; when that does not help, it stops.

The bad task has every sixth step. Steps 6 and 12 are skipped, but step 10 was saved between them; 18 is the second since then,
so the weights go back to those of step 10; after the checkpoint of step 20, 24 is the first and 30 the second.
"""

import json

import bad_loss_worker
import pytest

from helpers.ranks import Ranks
from imp_ds.train.engine.ds_config import FOLDER

pytestmark = pytest.mark.distributed

ORDER = ["image_text", "film_text", "film_speech_text", "speech_text", "image_digit", "speech_digit"]


@pytest.fixture(scope="module", params=["cpu_zero2_ep2.json", "cpu_zero3.json"])
def run(request, digits_corpus, tmp_path_factory):
    """(how the ranks ended, the folder of the run, what each rank saw of each step)"""
    folder = tmp_path_factory.mktemp("bad_loss")
    settings = {
        "train.steps": 40, "train.ep_size": 2, "train.max_bad_steps": 2, "train.max_rollbacks": 1, "train.save_every": 10,
        "data.root": digits_corpus, "data.workers": 0,
    }  # fmt: skip
    line = ["train", "digits_debug", "--output_dir", str(folder / "run"), "--deepspeed_config", str(FOLDER / request.param)]
    line += [f"--set={path}={value}" for path, value in settings.items()]
    ended = Ranks(bad_loss_worker.train, str(folder), *line, ranks=2, folder=folder / "logs").wait(90)
    steps = [[json.loads(x) for x in (folder / f"steps{rank}.jsonl").read_text().splitlines()] for rank in (0, 1)]
    return ended, folder / "run", steps


def test_the_step_is_skipped_on_both_ranks(run):
    ended, _, steps = run
    assert [s["task"] for s in steps[0]] == ORDER * 5, str(ended)
    for number, (one, other) in enumerate(zip(*steps, strict=True), start=1):
        spoiled = one["task"] == "speech_digit"
        assert one["finite"] and other["finite"] == (not spoiled)  # rank 0 saw nothing amiss by itself
        # the way back to an earlier checkpoint is a change too
        assert one["changed"] == other["changed"] == (not spoiled or number == 18)


def test_the_run_goes_back_to_the_last_checkpoint_and_past_the_data(run):
    ended, _, steps = run
    # 10 steps but the 6th; 7 more but the 12th; back to the 9 of step 10; from step 19 on all but the 24th
    expected = [*range(1, 6), 5, *range(6, 11), 10, *range(11, 16), 9, *range(10, 15), 14, *range(15, 20), 19]
    assert [s["adam_steps"] for s in steps[1]] == expected
    weights = [step["weights"] for step in steps[0]]
    assert weights[17] == weights[9] != weights[16]
    assert "step 18: back to the weights of step_00000010" in ended.outputs[0]


def test_the_task_is_named_and_the_run_stops_on_both_ranks(run):
    ended, _, _ = run
    assert ended.codes == [2, 2], str(ended)
    output = ended.outputs[0]
    assert "step 6 of task speech_digit was skipped: the loss is not finite (1 skipped so far)" in output
    assert "error: step 30 of task speech_digit was skipped: the loss is not finite\n  got:     2 skipped steps" in output
    assert "went back 1 times before" in output and "train.max_bad_steps = 2" in output and "fix: " in output
    assert "error" not in ended.outputs[1] and not any("Traceback" in text for text in ended.outputs), str(ended)


def test_what_was_saved_before_is_complete(run):
    _, folder, _ = run
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["latest", "step_00000010", "step_00000020"]
    state = json.loads((folder / "checkpoints" / "step_00000020" / "state.json").read_text())
    assert [state[name] for name in ("step", "adam_steps", "skipped", "rollbacks")] == [20, 11, 3, 1]
    assert not (folder / "results.json").exists()
