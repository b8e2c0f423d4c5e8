"""Ranks end when the launcher that started them is gone, however it went: killed with -9 it can tell nobody.

Watched are the processes above this one that are launchers: deepspeed and what it starts on each machine, torchrun, accelerate.
Shells, sshd, Slurm's and whatever else is above them are not, so a run that was left to itself with nohup, setsid or a terminal
that closes goes on, and so does a plain process. Imports the standard library alone, since it starts before all else.
"""

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
_released = threading.Event()
_WITH_VALUE = ("-X", "-W")  # options of Python that take the next argument


class Process(NamedTuple):
    """A process of this machine; `started` tells it from a later one with its number."""

    pid: int
    started: int
    parent: int
    running: bool


def look_up(pid: int) -> Process | None:
    """What the kernel knows of a process; None where there is none, or no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return Process(pid, int(fields[19]), int(fields[1]), fields[0] not in (b"Z", b"X"))


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
    while process is not None and is_launcher(_arguments(process.pid)):
        found.append(process)
        process = look_up(process.parent)
    return found


def watch_launcher() -> None:
    """End this process, with exit code 1 and a message, when a launcher above it is gone. Does nothing where there is none."""
    watched = launchers()
    if watched:
        threading.Thread(target=_watch, args=(watched,), name="launcher_watch", daemon=True).start()


def release() -> None:
    """Watch no longer: this process was asked to stop and does, and its launcher may have been asked too."""
    _released.set()


def _arguments(pid: int) -> list[str]:
    try:
        return [part.decode(errors="replace") for part in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]]
    except OSError:
        return []


def _watch(watched: list[Process]) -> None:
    while not _released.wait(INTERVAL_S):
        for process in watched:
            now = look_up(process.pid)
            if now is None or now.started != process.started or not now.running:
                _end(process)


def _end(launcher: Process) -> None:
    rank = os.environ.get("RANK", "0")
    text = f"error: the launcher (process {launcher.pid}) is gone: rank {rank} (process {os.getpid()}) ends\n"
    try:
        os.write(2, text.encode())
    except OSError:  # nobody reads it any more
        pass
    os._exit(EXIT_CODE)
