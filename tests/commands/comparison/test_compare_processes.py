"""Jobs as processes, with stand-ins that write files instead of training."""

import sys
import time
from pathlib import Path

import pytest

from imp_ds.commands.comparison.processes import run_jobs
from imp_ds.errors import UserError

STEPS = 10


class FakeJob:
    """Done when its file is there. Its process writes when it began and ended, and the threads it may use."""

    steps = STEPS

    def __init__(self, folder: Path, name: str, body: str = ""):
        self.name, self.file, self.body = name, folder / name, body
        self.log = folder / "logs" / f"{name}.log"

    def steps_done(self) -> int:
        return 4

    def command(self):
        if self.file.exists():
            return None
        code = f"import os, sys, time, pathlib; began = time.time(); {self.body or 'time.sleep(0.3)'}; "
        code += "threads = os.environ['OMP_NUM_THREADS']; "
        code += "assert 'RANK' not in os.environ; "
        code += f"pathlib.Path({str(self.file)!r}).write_text(f'{{began}} {{time.time()}} {{threads}}')"
        return [sys.executable, "-c", code, "train"]


def run(jobs, parallel=2):
    reported, lines = [], []
    run_jobs(jobs, parallel, progress=lambda *how_far: reported.append(how_far), log=lines.append)
    return reported, lines


def test_no_more_run_at_a_time_than_asked_and_what_is_done_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr("imp_ds.commands.comparison.processes.os.sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setattr("imp_ds.commands.comparison.processes._LOOK_S", 0.05)
    (tmp_path / "done").write_text("0 0 kept")
    jobs = [FakeJob(tmp_path, name) for name in ("done", "a", "b", "c")]
    reported, lines = run(jobs)
    assert (tmp_path / "done").read_text() == "0 0 kept"
    times = [tuple(map(float, (tmp_path / name).read_text().split())) for name in "abc"]
    assert all(threads == 3 for *_, threads in times)  # six cores for two
    at_once = [sum(began <= moment < ended for began, ended, _ in times) for moment, _, _ in times]
    assert max(at_once) <= 2
    assert reported[-1] == ("training", 4 * STEPS, 4 * STEPS)
    # one done, two running and one waiting, all of which have reported 4 steps
    assert ("training", STEPS + 3 * 4, 4 * STEPS) in reported
    assert lines[0] == "1 of 4 runs are done already" and len(lines) == 4


def test_a_job_that_fails_is_reported_with_its_last_words_and_stops_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr("imp_ds.commands.comparison.processes._LOOK_S", 0.05)
    jobs = [FakeJob(tmp_path, "bad", "sys.exit('the corpus burnt')"), FakeJob(tmp_path, "slow", "time.sleep(60)")]
    start = time.monotonic()
    with pytest.raises(UserError, match=r"run bad failed(.|\n)*exit code 1(.|\n)*the corpus burnt(.|\n)*goes on with what is"):
        run(jobs)
    assert time.monotonic() - start < 20 and not (tmp_path / "slow").exists()


def test_a_process_that_ends_well_without_having_done_its_work_is_no_endless_loop(tmp_path, monkeypatch):
    monkeypatch.setattr("imp_ds.commands.comparison.processes._LOOK_S", 0.05)
    with pytest.raises(UserError, match="run idle failed"):
        run([FakeJob(tmp_path, "idle", "sys.exit(0)")])
