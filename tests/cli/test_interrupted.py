"""Ctrl-C in any command: one line, exit code 130, no traceback, and none of the processes that look at samples speaks."""

import os
import signal
import subprocess
import sys
import time

import pytest

from helpers.processes import ROOT, environment

# the command waits where its work would be; the worker of a check gets the signal as well, as from a terminal
WAITING = """
import sys, types
sys.argv = ["imp_ds", "corpus", "digits", "OUT"]  # before the import, which is then a quick one
from imp_ds.data.loading.worker_pool import WorkerPool
stand_in = types.ModuleType("imp_ds.data.digits")
def build(out, seed, *, scale, progress):
    import time
    pool = WorkerPool(time.sleep, range(0, 60, 30), workers=1, ahead=2)
    pool.take()
    print("ready", flush=True)
    try:
        pool.take()
    finally:
        pool.close()
stand_in.build = build
sys.modules["imp_ds.data.digits"] = stand_in
from imp_ds.__main__ import main
main()
"""


@pytest.mark.parametrize("rank, said", [(None, "stopped by Ctrl-C\n"), ("1", "")])
def test_a_command_ends_with_one_line(rank, said, tmp_path):
    env = environment() if rank is None else environment(RANK=rank)
    command = [sys.executable, "-c", WAITING.replace("OUT", str(tmp_path / "corpus"))]
    child = subprocess.Popen(
        command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.1)
        os.killpg(child.pid, signal.SIGINT)
        assert child.wait(20) == 130
        assert child.stderr.read() == said and child.stdout.read() == ""
    finally:
        child.kill()
        child.wait(5)
