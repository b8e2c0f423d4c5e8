"""Ranks end when the launcher that started them is gone, however it went: killed with -9 it can report to nobody.

It may go before a rank can look for it: while torch is imported, or while the second program of deepspeed is, which outlives the
first. So the watch begins before anything else, and ends at once a process with the variables of a launcher and none above it.

Watched are the processes above this one that are launchers: deepspeed and what it starts on each machine, torchrun, accelerate.
Shells, sshd, Slurm's and whatever else is above them are not, so a run that was left to itself with nohup, setsid or a terminal
that closes goes on, and so does a plain process. Imports the standard library alone, since it starts before all else.
"""

import base64
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

EXIT_CODE = 1
INTERVAL_S = 1.0
_PROGRAMS = {"deepspeed", "torchrun", "accelerate", "accelerate-launch", "ds"}
_MODULES = ("deepspeed.launcher.", "torch.distributed.run", "torch.distributed.launch", "accelerate.commands.")
_FILES = ("deepspeed/launcher/", "torch/distributed/run.py", "torch/distributed/launch", "accelerate/commands/")
PARENT = "IMP_DS_PARENT"  # a process of ours that starts another one says here which it is: it is watched as a launcher is
_MARKS = ("TORCHELASTIC_RUN_ID", "CROSS_RANK")  # variables that torchrun (accelerate too) and deepspeed give their ranks
_released = threading.Event()
_started = threading.Lock()  # taken once
_WITH_VALUE = ("-X", "-W")  # options of Python that take the next argument


class Process(NamedTuple):
    """A process of this machine; `started` distinguishes it from a later one with its number."""

    pid: int
    started: int
    parent: int
    group: int
    session: int
    running: bool


def look_up(pid: int) -> Process | None:
    """What the kernel knows of a process; None where there is none, or no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    parent, group, session = map(int, fields[1:4])
    return Process(pid, int(fields[19]), parent, group, session, fields[0] not in (b"Z", b"X"))


def is_launcher(arguments: Sequence[str]) -> bool:
    """Whether a command line is that of a launcher."""
    if not arguments:
        return False
    program, *rest = arguments
    if not os.path.basename(program).startswith("python"):
        return os.path.basename(program) in _PROGRAMS
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option == "-m":
            return bool(rest) and rest[0].startswith(_MODULES)
        if option in _WITH_VALUE and rest:
            rest.pop(0)
    return bool(rest) and (os.path.basename(rest[0]) in _PROGRAMS or any(part in rest[0] for part in _FILES))


def launchers() -> list[Process]:
    """The launchers above this process, the nearest first."""
    found, process = [], look_up(os.getppid())
    while process is not None and (is_launcher(_arguments(process.pid)) or str(process.pid) == os.environ.get(PARENT)):
        found.append(process)
        process = look_up(process.parent)
    return found


def watch_launcher() -> None:
    """End this process, with exit code 1 and a message, when a launcher above it is gone, or is gone already. Does nothing where
    there was none, and when it is called again."""
    if not _started.acquire(blocking=False):
        return
    watched = launchers()
    if is_lost(watched):
        _end("the launcher")
    if watched:
        threading.Thread(target=_watch, args=(watched,), name="launcher_watch", daemon=True).start()


def is_lost(watched: list[Process]) -> bool:
    """Whether a launcher of this process was gone before `watched`, what `launchers` found, was looked for."""
    if watched:
        return _of_one_machine(_arguments(watched[-1].pid)) and _is_adopted(watched[-1])
    if PARENT in os.environ:
        return look_up(os.getppid()) is not None  # and it is another one
    mark = next((name for name in _MARKS if name in os.environ), None)
    if mark is None:
        return False
    process = look_up(os.getppid())
    while process is not None and _has_variable(process.pid, mark):  # what the launcher started has it too: a shell, say
        process = look_up(process.parent)
    # a program of one's own may start ranks by torch's classes: it is in Python, and the process that adopts orphans is not
    return process is not None and not is_launcher(_arguments(process.pid)) and not _is_python(process.pid)


def release() -> None:
    """Watch no longer: this process was asked to stop and does, and its launcher may have been asked too."""
    _released.set()


def _arguments(pid: int) -> list[str]:
    try:
        return [part.decode(errors="replace") for part in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]]
    except OSError:
        return []


def _of_one_machine(arguments: Sequence[str]) -> bool:
    """Whether this is the second program of deepspeed where the first is above it: that is so where no remote shell is needed."""
    world = next((part.partition("=")[2] for part in arguments if part.startswith("--world_info=")), "")
    try:
        return len(json.loads(base64.urlsafe_b64decode(world))) == 1
    except (ValueError, TypeError):
        return False


def _is_adopted(process: Process) -> bool:
    """Whether a process has lost the one that started it: a child is of its parent's session and group, or heads its own."""
    parent = look_up(process.parent)
    if parent is None:
        return False
    other_group = process.group not in (parent.group, process.pid)
    return process.session not in (parent.session, process.pid) or parent.pid == 1 and other_group


def _has_variable(pid: int, name: str) -> bool:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # of another user: not started from here
        return False
    return any(variable.startswith(f"{name}=".encode()) for variable in variables)


def _is_python(pid: int) -> bool:
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe")).startswith("python")
    except OSError:
        return False


def _watch(watched: list[Process]) -> None:
    while not _released.wait(INTERVAL_S):
        for process in watched:
            now = look_up(process.pid)
            if now is None or now.started != process.started or not now.running:
                _end(f"the launcher (process {process.pid})")


def _end(gone: str) -> None:
    text = f"error: {gone} is gone: rank {os.environ.get('RANK', '0')} (process {os.getpid()}) ends\n"
    try:
        os.write(2, text.encode())
    except OSError:  # nobody reads it any more
        pass
    os._exit(EXIT_CODE)
