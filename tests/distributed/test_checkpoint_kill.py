"""Two ranks save without a pause and are killed at random moments: the newest complete checkpoint is always found."""

import os
import random
import re
import signal
import time
from pathlib import Path

import checkpoint_kill_worker
import pytest

from helpers.plain_engine import check_complete
from helpers.ranks import Ranks, run_ranks
from imp_ds.train import checkpoint

pytestmark = pytest.mark.distributed

KILLS = 20


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def kill_while_saving(folder: Path, logs: Path, victims: tuple[int, ...], delay: float) -> int:
    """Start both ranks, kill some `delay` seconds after they began to save, the rest soon after; the last step that was
    known to be published."""
    ranks = Ranks(checkpoint_kill_worker.save_until_killed, str(folder), ranks=2, folder=logs)
    files, deadline = [folder / "pid0", folder / "pid1"], time.monotonic() + 60
    while not all(file.exists() and file.read_text() for file in files) and ranks.alive() and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(delay)
    for victim in victims:
        os.kill(int(files[victim].read_text()), signal.SIGKILL)
    if len(victims) == 1:
        time.sleep(0.1)  # the other one does what it can
    ranks.kill()
    ended = ranks.wait(20)
    assert all(ended.codes[victim] == -signal.SIGKILL for victim in victims), str(ended)
    for file in files:
        file.unlink()
    assert "passing over" not in ended.outputs[0] + ended.outputs[1]  # nothing that looked like a checkpoint was damaged
    return max(map(int, re.findall(r"published (\d+)", ended.outputs[0])), default=0)


def test_a_run_that_is_killed_while_saving_always_finds_the_newest_complete_one(tmp_path):
    draw, before, torn = random.Random(0), 0, 0
    for kill in range(KILLS):
        victims = ((0, 1), (0,), (1,))[kill % 3]
        published = kill_while_saving(tmp_path, tmp_path / "logs", victims, draw.uniform(0.0, 0.3))
        torn += any(name.startswith(".staging") for name in names(tmp_path))
        path = checkpoint.newest(tmp_path, warn=pytest.fail)
        step = check_complete(path) if path else 0
        assert step >= max(published, before)
        pointer = tmp_path / "checkpoints" / "latest"
        if pointer.exists():  # it never names what is not whole
            check_complete(pointer.with_name(pointer.read_text().strip()))
        before = step
    assert before > KILLS  # they did get on
    assert torn > KILLS // 2  # most kills met a save on its way
    run_ranks(checkpoint_kill_worker.save_once, str(tmp_path), ranks=2, folder=tmp_path / "logs")
    kept = [checkpoint.folder_name(step) for step in (before, before + 1)]
    assert names(tmp_path) == ["latest", *kept]


def test_a_disk_that_is_full_on_one_rank_fails_that_save_on_all(tmp_path):
    ended = run_ranks(checkpoint_kill_worker.fail_on_one_rank, str(tmp_path), ranks=2, folder=tmp_path / "logs")
    for output in ended.outputs:
        second, third = re.findall(r"refused after (\d+) s: the checkpoint could not be written\n  got: *(.*)", output)
        assert int(second[0]) < 10 and second[1].endswith(
            "step_00000002: rank 1 could not write its part: [Errno 28] No space left on device"
        )
        # rank 1 could not say so: rank 0 gives up after its second
        assert int(third[0]) < 10 and "step_00000003: not done after 1 s; is the folder shared by all nodes" in third[1]
        assert "saved" not in output
    assert ended.outputs[0].count("failed, the one before stays") == 2 and "failed" not in ended.outputs[1]
    assert names(tmp_path) == ["latest", "step_00000001", "step_00000004"]
    assert check_complete(checkpoint.newest(tmp_path)) == 4
