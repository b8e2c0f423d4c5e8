"""The helpers that start real processes: they tell success from failure, and a hang leaves nothing behind."""

import signal
import sys
import time

import psutil
import pytest

from helpers.processes import environment, free_port, run, run_together
from helpers.ranks import PRELOADED, Ranks, end_well, run_ranks


def test_output_and_exit_code_are_returned():
    finished = run(
        [sys.executable, "-c", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"], timeout=30, code=3
    )
    assert finished.code == 3
    assert finished.output.splitlines() == ["out", "err"]


def test_wrong_exit_code_fails_and_shows_the_output():
    with pytest.raises(AssertionError, match="(?s)exit code 5.*the reason"):
        run([sys.executable, "-c", "print('the reason'); raise SystemExit(5)"], timeout=30)


def test_hang_is_killed_with_its_descendants_of_other_sessions(tmp_path):
    # the grandchild leaves the process group, as torchrun's workers do: killing the group alone would miss it
    pid_file = tmp_path / "pid"
    grandchild = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}], start_new_session=True)"
    start = time.monotonic()
    with pytest.raises(AssertionError, match="not done after 3 s"):
        run([sys.executable, "-c", child], timeout=3)
    assert time.monotonic() - start < 20
    pid = int(pid_file.read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_together_runs_at_the_same_time():
    # they meet on a port: one after the other, the first would never end
    port = free_port()
    server = f"import socket; s = socket.create_server(('127.0.0.1', {port})); s.accept(); print('met')"
    client = f"""
import socket, time
for _ in range(100):
    try:
        socket.create_connection(('127.0.0.1', {port}))
        print('met')
        break
    except OSError:
        time.sleep(0.1)
"""
    finished = run_together([([sys.executable, "-c", server], None), ([sys.executable, "-c", client], None)], timeout=30)
    assert [one.output.strip() for one in finished] == ["met", "met"]


def test_a_child_inherits_no_place_among_ranks(monkeypatch):
    monkeypatch.setenv("RANK", "7")
    monkeypatch.setenv("SLURM_PROCID", "7")
    child = environment(WORLD_SIZE="2")
    assert "RANK" not in child and "SLURM_PROCID" not in child
    assert child["WORLD_SIZE"] == "2"


def check_preloaded() -> None:
    missing = [name for name in PRELOADED if name not in sys.modules]
    assert not missing, missing


@pytest.mark.distributed
def test_a_rank_begins_with_all_that_is_preloaded(tmp_path):
    """The server passes over a name that it cannot import, and every rank would be slow."""
    run_ranks(check_preloaded, ranks=1, folder=tmp_path)


@pytest.mark.distributed
def test_a_world_that_fails_ends_those_beside_it(tmp_path):
    failing = Ranks(sys.exit, 3, ranks=1, folder=tmp_path / "failing")
    sleeping = Ranks(time.sleep, 60, ranks=2, folder=tmp_path / "sleeping")
    with pytest.raises(AssertionError, match="rank 0: exit 3"):
        end_well([failing, sleeping], limit_s=30)
    assert sleeping.wait(10).codes == [-signal.SIGKILL] * 2
