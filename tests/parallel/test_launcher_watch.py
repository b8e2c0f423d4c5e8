"""Ranks whose launcher is killed, and those of a run that was left to itself."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import psutil
import pytest

from helpers.processes import ROOT, environment, free_port
from imp_ds.parallel.launcher_watch import is_launcher

ALONE = str(ROOT / "imp_ds" / "parallel")  # the module without the package, whose import takes seconds
# each program of a chain starts the next one; the last is the rank
STARTER = """
import subprocess, sys
subprocess.Popen([sys.executable, *sys.argv[1:]]).wait()
"""
RANK = """
import sys, time
from launcher_watch import launchers, watch_launcher
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
        [str(part) for part in command], env=environment(PYTHONPATH=ALONE), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    watched = int(child.stdout.readline())
    chain = [psutil.Process(child.pid)]
    while below := chain[-1].children():
        chain += below
    return chain, watched


def kill_all(processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass


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
        kill_all(chain)


STAGE_STARTER = """
import os, subprocess, sys
subprocess.Popen([sys.executable, *sys.argv[1:]], env=os.environ | {"IMP_DS_PARENT": str(os.getpid())}).wait()
"""


@pytest.mark.parametrize("above, killed, watched", [("my_shell", 1, 1), ("torchrun", 0, 2)])
def test_a_process_of_a_stage_ends_with_the_one_that_started_it(above, killed, watched, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "STARTER", STAGE_STARTER)
    chain, found = start(tmp_path, above, "imp_ds")
    try:
        assert found == watched
        os.kill(chain[killed].pid, signal.SIGKILL)
        chain[-1].wait(20)
    finally:
        kill_all(chain)


# a rank that begins to watch when the process of this depth above it has been killed
LATE_RANK = """
import os, sys, time
from launcher_watch import look_up, watch_launcher
above = os.getpid()
for _ in range(int(sys.argv[1])):
    above = look_up(above).parent
print(above, flush=True)
while (process := look_up(above)) is not None and process.running:
    time.sleep(0.02)
watch_launcher()
"""
MARKING_STARTER = """
import os, subprocess, sys
subprocess.Popen([sys.executable, *sys.argv[1:]], env=os.environ | {VARIABLE: "x"}).wait()
"""
LAUNCH = "deepspeed/launcher/launch.py"


def world(*hosts: str) -> str:
    return "--world_info=" + base64.urlsafe_b64encode(json.dumps({host: [0] for host in hosts}).encode()).decode()


@pytest.mark.parametrize(
    "names, option, variable, ends",
    [
        (["torchrun"], "", "TORCHELASTIC_RUN_ID", True),
        (["deepspeed"], "", "CROSS_RANK", True),
        (["torchrun", "my_shell"], "", "TORCHELASTIC_RUN_ID", True),  # --no_python: a shell between them
        (["my_shell"], "", "MY_VARIABLE", False),  # nohup, and the terminal is closed
        (["bin/deepspeed", LAUNCH], world("localhost"), "CROSS_RANK", True),  # its first program goes, its second starts ranks
        (["my_shell", LAUNCH], world("one", "two"), "CROSS_RANK", False),  # what a remote shell started
    ],
)
def test_a_launcher_that_is_killed_before_anybody_watches(names, option, variable, ends, tmp_path):
    chain = [tmp_path / name for name in names]
    for path in chain:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(MARKING_STARTER.replace("VARIABLE", repr(variable)))
    (tmp_path / "rank.py").write_text(LATE_RANK)
    command = [sys.executable, *map(str, chain), str(tmp_path / "rank.py"), str(len(chain)), option]
    child = subprocess.Popen(
        command, env=environment(PYTHONPATH=ALONE), stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    os.kill(int(child.stdout.readline()), signal.SIGKILL)
    said = child.communicate(timeout=20)[1].decode()  # until all of them have ended
    assert ("the launcher is gone: rank" in said) is ends, said


def tree(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def is_program(process: psutil.Process, part: str) -> bool:
    try:
        return part in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


@pytest.mark.distributed
def test_nothing_is_left_where_launchers_are_killed_while_they_start(tmp_path):
    """torchrun as soon as it has a rank; deepspeed as soon as it has its second program, which then starts ranks. Both at once,
    since both take seconds to import torch."""
    rank = ["imp_ds", "train", "nowhere"]
    port = str(free_port())
    lines = {
        " -m imp_ds": ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", port, "-m", *rank],
        "deepspeed.launcher.launch": ["deepspeed.launcher.runner", "--num_gpus", "2", "--module", *rank],
    }
    seen: dict[int, psutil.Process] = {}
    started = {
        awaited: subprocess.Popen(
            [sys.executable, "-m", *line], env=environment(PYTHONPATH=str(ROOT)), cwd=ROOT, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=(tmp_path / "said").open("ab"),
        )
        for awaited, line in lines.items()
    }  # fmt: skip
    alive = lambda: [p for p in seen.values() if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]  # noqa: E731
    try:
        wait_for(lambda: look(started, seen) and all(child.poll() is not None for child in started.values()) and not alive(), 60)
    finally:
        for process in alive():
            process.kill()
    assert (tmp_path / "said").read_text().count("is gone: rank") >= 2  # of deepspeed's ranks, that began after it was killed


def look(started: dict[str, subprocess.Popen], seen: dict[int, psutil.Process]) -> bool:
    """Note all processes that there are, and kill the launchers that have come far enough."""
    for awaited, child in started.items():
        known = [psutil.Process(child.pid)] if child.poll() is None else []
        for process in [*known, *seen.values()]:
            for one in tree(process):
                seen.setdefault(one.pid, one)
                if child.poll() is None and one.pid != child.pid and is_program(one, awaited):
                    child.kill()
                    child.wait()
    return True


def wait_for(done: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "processes are left"
        time.sleep(0.05)
