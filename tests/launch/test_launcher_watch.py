"""Ranks whose launcher is killed, and those of a run that was left to itself."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from imp_ds.parallel.launcher_watch import is_launcher
from processes import ROOT, environment

# each program of a chain starts the next one; the last is the rank
STARTER = """
import subprocess, sys
subprocess.Popen([sys.executable, *sys.argv[1:]]).wait()
"""
RANK = """
import sys, time
from imp_ds.parallel.launcher_watch import launchers, watch_launcher
watch_launcher()
print(len(launchers()), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    "line, expected",
    [
        ("/usr/bin/python3 /opt/bin/deepspeed --num_gpus 2 x", True),
        ("/v/bin/python3.12 -u -m deepspeed.launcher.launch --world_info=abc -m imp_ds train", True),
        ("python -X dev -m torch.distributed.run --nproc_per_node 2 -m imp_ds", True),
        ("/v/bin/python -u /v/lib/python3.12/site-packages/deepspeed/launcher/launch.py x", True),
        ("python /v/bin/accelerate launch x", True),
        ("torchrun x", True),
        ("bash scripts/train_one_node.sh deepspeed", False),
        ("timeout 100 deepspeed x", False),
        ("python -m pytest tests/deepspeed", False),
        ("python my_own_launcher.py torchrun", False),
        ("srun deepspeed", False),
        ("python", False),
    ],
)
def test_what_a_launcher_is(line, expected):
    assert is_launcher(line.split()) is expected


def start(folder, *names: str) -> tuple[list[psutil.Process], int]:
    """A chain of programs of these names above a rank: its processes from above, the rank last, and how many it watches."""
    for name in names:
        (folder / name).write_text(STARTER)
    (folder / "rank.py").write_text(RANK)
    command = [sys.executable, *(folder / name for name in names), folder / "rank.py"]
    child = subprocess.Popen(
        [str(part) for part in command], env=environment(PYTHONPATH=str(ROOT)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    watched = int(child.stdout.readline())
    chain = [psutil.Process(child.pid)]
    while below := chain[-1].children():
        chain += below
    return chain, watched


@pytest.mark.parametrize(
    "names, killed, watched, ends",
    [
        (["torchrun"], 0, 1, True),
        (["deepspeed", "accelerate"], 0, 2, True),  # the upper of two
        (["my_shell", "torchrun"], 0, 1, False),  # what is above the launcher may go
        (["my_shell"], 0, 0, False),
    ],
)  # fmt: skip
def test_a_rank_ends_with_its_launcher_alone(names, killed, watched, ends, tmp_path):
    chain, found = start(tmp_path, *names)
    try:
        assert found == watched
        os.kill(chain[killed].pid, signal.SIGKILL)
        if ends:
            chain[-1].wait(20)
        else:
            time.sleep(1.5)  # the watch looks each second
            assert chain[-1].is_running() and chain[-1].status() != psutil.STATUS_ZOMBIE
    finally:
        for process in chain:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
