"""Real ranks that die, stop, hang or fail: all end in time, not well, and one message names the one to blame."""

import os
import signal
import time

import pytest
import watchdog_worker
from watchdog_worker import BAD_STEP, TIMEOUT_S

from helpers.ranks import Ended, Ranks
from imp_ds.parallel.diagnosis import RankStatus, diagnose_broken, diagnose_events, diagnose_stillness
from imp_ds.parallel.watchdog import EXIT_CODE

pytestmark = pytest.mark.distributed
RANKS = 3


def ended(folder, fault: str, culprit: int, limit_s: float = 20, stopped: bool = False) -> Ended:
    ranks = Ranks(watchdog_worker.loop, fault, culprit, ranks=RANKS, folder=folder)
    if stopped:  # it cannot end itself: a launcher kills it when the others are gone, and so does this
        others = [process for i, process in enumerate(ranks._processes) if i != culprit]
        deadline = time.monotonic() + limit_s
        for process in others:
            process.join(max(0.0, deadline - time.monotonic()))
        assert not any(process.is_alive() for process in others), str(ranks.wait(0))
        ranks.kill()
    return ranks.wait(limit_s)


def the_message(end: Ended) -> str:
    """What the ranks printed, in which there must be one message of the watchdog."""
    output = "\n".join(end.outputs)
    assert output.count("error: ") == 1, str(end)
    return output


@pytest.mark.parametrize("culprit", [0, 1])
def test_a_rank_that_is_killed(culprit, tmp_path):
    end = ended(tmp_path, "killed", culprit)
    expected = [EXIT_CODE] * RANKS
    expected[culprit] = -signal.SIGKILL
    assert end.codes == expected, str(end)
    output = the_message(end)
    assert f"error: rank {culprit} (process " in output and ") died" in output and "Traceback" not in output
    assert f"step {BAD_STEP}, training" in output  # where in it is known of a rank that has stood still for a second


@pytest.mark.parametrize("culprit", [0, 1])
def test_a_rank_that_is_stopped(culprit, tmp_path):
    end = ended(tmp_path, "stopped", culprit, stopped=True)
    assert [code for i, code in enumerate(end.codes) if i != culprit] == [EXIT_CODE] * (RANKS - 1), str(end)
    output = the_message(end)
    assert f"error: rank {culprit} (process " in output and "gave no sign of life for" in output and "Traceback" not in output
    assert f"{TIMEOUT_S:g} s (train.hang_timeout_s" in output


@pytest.mark.parametrize("culprit", [0, 2])
def test_a_rank_that_hangs(culprit, tmp_path):
    end = ended(tmp_path, "sleeping", culprit)
    assert end.codes == [EXIT_CODE] * RANKS, str(end)
    output = the_message(end)
    assert f"error: rank {culprit} (process " in output and "hangs: no progress for" in output
    assert f"step {BAD_STEP}, training, at watchdog_worker.py" in output and " in _sleeping" in output
    # its own stack, in its own output only
    assert "time.sleep(1000)" in end.outputs[culprit] and f"rank {culprit} is ended here" in end.outputs[culprit]
    assert output.count("is ended here") == 1 and "Traceback" not in output


@pytest.mark.parametrize("culprit", [0, 1])
def test_a_rank_that_fails_shows_its_error_and_the_others_none(culprit, tmp_path):
    end = ended(tmp_path, "failing", culprit)
    assert end.codes == [1] * RANKS, str(end)
    output = the_message(end)
    assert f"error: rank {culprit} (process " in output and "failed: ValueError: a fault of my own" in output
    assert output.count("Traceback") == 1 and "Traceback" in end.outputs[culprit]


def test_a_rank_that_leaves_the_others_waiting_is_named(tmp_path):
    end = Ranks(watchdog_worker.loop, "leaving", 1, ranks=RANKS, folder=tmp_path)
    deadline = time.monotonic() + 20
    while end._processes[0].is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert end._processes[0].exitcode == EXIT_CODE
    end.kill()
    output = the_message(end.wait(10))
    assert "all ranks wait for each other" in output and "rank 1: has ended" in output


def test_a_long_phase_has_its_own_limit(tmp_path):
    end = ended(tmp_path, "slow", 1)
    assert end.codes == [0] * RANKS, str(end)
    assert all(text.strip() == "done" for text in end.outputs), str(end)


def test_what_all_ranks_raise_is_nobodys_fault(tmp_path):
    end = Ranks(watchdog_worker.all_fail, ranks=2, folder=tmp_path).wait(20)
    assert end.codes == [1, 1] and all("UserError: all agree on this" in text for text in end.outputs), str(end)
    assert not any("error: " in text for text in end.outputs)


def test_what_all_ranks_refuse_is_logged_by_them(tmp_path):
    end = Ranks(watchdog_worker.refuse_alike, 0.2, ranks=2, folder=tmp_path).wait(20)
    assert end.codes == [1, 1] and all("UserError: this file cannot be used" in text for text in end.outputs), str(end)
    assert not any("error: " in text for text in end.outputs)


def test_what_one_rank_refuses_is_logged_by_it_alone(tmp_path):
    end = ended(tmp_path, "refusing", 1)
    assert end.codes == [1] * RANKS, str(end)
    assert [("UserError: this file" in text, "error: " in text) for text in end.outputs] == [
        (False, False), (True, False), (False, False)
    ]  # fmt: skip


def test_a_single_process_that_hangs(tmp_path):
    end = Ranks(watchdog_worker.sleep_alone, ranks=1, folder=tmp_path).wait(20)
    assert end.codes == [EXIT_CODE]
    assert "error: rank 0 (process" in end.outputs[0] and "step 7, training" in end.outputs[0], str(end)


def test_a_stopped_rank_0_that_goes_on_adds_nothing(tmp_path):
    ranks = Ranks(watchdog_worker.loop, "stopped", 0, ranks=RANKS, folder=tmp_path)
    for process in ranks._processes[1:]:
        process.join(20)
    os.kill(ranks._processes[0].pid, signal.SIGCONT)
    end = ranks.wait(20)
    assert end.codes == [EXIT_CODE] * RANKS, str(end)
    assert "error: rank 0" in the_message(end) and "rank 0 is ended here" in end.outputs[0]


def statuses(*changes: dict) -> list[RankStatus]:
    usual = dict(step=5, phase="training", allowed_s=10, still_s=1)
    return [RankStatus(i, **(usual | change)) for i, change in enumerate(changes)]


@pytest.mark.parametrize(
    "ranks, blamed",
    [
        ([{}, {}], None),
        # rank 0 waits for rank 1, which does its work slowly, but not too slowly yet
        ([{"still_s": 11, "waiting": True}, {"still_s": 9}], None),
        ([{"still_s": 13, "waiting": True}, {"still_s": 11}], (1,)),
        # of two that do not wait, the one that is behind
        ([{"still_s": 11, "step": 6}, {"still_s": 11, "step": 5}], (1,)),
        ([{"still_s": 11, "waiting": True}, {"still_s": 12, "waiting": True}], (0, 1)),
        # no report of rank 1 for long: it may have stopped inside of an exchange
        ([{"still_s": 11, "waiting": True}, {"still_s": 7, "waiting": True, "silent_s": 4}], (1,)),
        # a long phase, in which a rank may be too busy to report anything
        ([{"still_s": 11, "waiting": True}, {"allowed_s": 100, "silent_s": 11}], None),
        ([{"done": True, "still_s": 50}, {}], None),
    ],
)
def test_who_hangs(ranks, blamed):
    diagnosis = diagnose_stillness(statuses(*ranks), quiet_s=3)
    assert (diagnosis and diagnosis.ranks) == blamed


@pytest.mark.parametrize(
    "ranks, blamed, failed",
    [
        # the survivors of rank 2 met errors before it was known that it is gone
        ([{"failure": "RuntimeError: Connection closed by peer", "effect": True}, {}, {"gone": True}], (2,), False),
        ([{"failure": "RuntimeError: Connection reset", "effect": True}, {"failure": "KeyError: x"}], (1,), True),
        ([{"failure": "RuntimeError: Connection reset", "effect": True}, {}], None, None),
    ],
)
def test_a_cause_is_distinguished_from_its_effects(ranks, blamed, failed):
    diagnosis = diagnose_events(statuses(*ranks))
    assert (diagnosis and (diagnosis.ranks, diagnosis.failed)) == (blamed and (blamed, failed))


def test_a_connection_that_broke_without_any_other_cause_is_named():
    diagnosis = diagnose_broken(statuses({"failure": "RuntimeError: Connection reset", "effect": True}, {}))
    assert diagnosis.ranks == (0,) and "rank 0 (process 0 on ) failed: RuntimeError: Connection reset" in diagnosis.text
