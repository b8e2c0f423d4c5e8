"""Real processes in tests: started with a time limit, ended with all their descendants, their output shown when they fail.

    finished = run([sys.executable, "-m", "imp_ds", "plan", "digits"], timeout=60)
    first, second = run_together([node(0), node(1)], timeout=120)

Output goes through a file, not a pipe: an orphan that holds a pipe open could make its reader wait for ever.
"""

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
SHOWN = 6000  # characters of output in a failure
_PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Finished:
    """How a process ended: its exit code (negative: the signal that killed it) and all that it printed, both streams in order."""

    command: tuple[str, ...]
    code: int
    output: str

    def __str__(self) -> str:
        shown = self.output if len(self.output) <= SHOWN else "...\n" + self.output[-SHOWN:]
        return f"exit code {self.code} of {' '.join(self.command)}\n{shown}"


def environment(**changes: str) -> dict[str, str]:
    """This process's variables for a child on the CPU, one thread each, with no place among ranks; `changes` are put on top."""
    kept = {name: value for name, value in os.environ.items() if name not in _PLACE and not name.startswith("SLURM_")}
    return kept | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"} | changes


def free_port() -> int:
    """A TCP port of this machine that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(command: Sequence, *, timeout: float, env: Mapping[str, str] | None = None, cwd=ROOT, code: int | None = 0) -> Finished:
    """Run one command to its end.

    Args:
        timeout: seconds; after them the process and its descendants are killed and AssertionError is raised.
        env: all variables of the process; None takes `environment()`.
        cwd: where it runs; the project's root by default.
        code: the exit code it must have; None allows any.
    """
    return run_together([(command, env)], timeout=timeout, cwd=cwd, code=code)[0]


def run_together(
    commands: Sequence[tuple[Sequence, Mapping[str, str] | None]], *, timeout: float, cwd=ROOT, code: int | None = 0
) -> list[Finished]:
    """Run several (command, env) at once to their ends, within one time limit; like `run` otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / str(i) for i in range(len(commands))]
        deadline, children = time.monotonic() + timeout, []
        try:
            for (command, env), log in zip(commands, logs):
                children.append(_start(command, env, log, cwd))
            late = not all(_ended(child, deadline) for child in children)
        finally:
            for child in children:
                _end(child)
        finished = [
            Finished(tuple(child.args), child.returncode, log.read_text(errors="replace")) for child, log in zip(children, logs)
        ]
    report = "\n\n".join(map(str, finished))
    assert not late, f"not done after {timeout} s, killed:\n{report}"
    assert code is None or all(one.code == code for one in finished), f"expected exit code {code}:\n{report}"
    return finished


def _start(command: Sequence, env: Mapping[str, str] | None, log: Path, cwd) -> subprocess.Popen:
    with log.open("wb") as output:
        return subprocess.Popen(
            [str(part) for part in command], cwd=cwd, env=environment() if env is None else dict(env), stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def _ended(child: subprocess.Popen, deadline: float) -> bool:
    try:
        child.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


def _end(child: subprocess.Popen) -> None:
    """Kill what is left of a child: its descendants, whatever session they made for themselves, and its process group."""
    descendants = []
    if child.poll() is None:
        try:
            descendants = psutil.Process(child.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            pass
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    for process in descendants:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass
    child.wait(10)
    psutil.wait_procs(descendants, timeout=5)  # a signal takes its time, and nobody may wait for an orphan in a container
