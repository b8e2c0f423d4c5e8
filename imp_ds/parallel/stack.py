"""Where another thread stands, without holding its frames.

A frame object that a thread takes from another (sys._current_frames) keeps that frame's variables alive after the function has
returned. In a backward pass of ZeRO 3 these are gradient accumulators of partitioned parameters, whose shape is [0]; one that
lives on until the next forward makes its backward fail with "returned an invalid gradient ... expected shape compatible with
[0]". faulthandler reads the stack in one piece and takes no frame.
"""

import faulthandler
import os
import re
import sys
from typing import NamedTuple

_LINE = re.compile(r'^  File "(?P<path>.*)", line (?P<line>\d+|\?\?\?) in (?P<function>.*)$', re.MULTILINE)


class Place(NamedTuple):
    """A line of a stack."""

    path: str
    line: str  # "???" where it is not known
    function: str

    def __str__(self) -> str:
        return f"{os.path.basename(self.path)}:{self.line} in {self.function}"


def stack_of(thread: int) -> list[Place]:
    """The stack of a thread by its identity (threading.get_ident), innermost first; empty when the thread is gone or the
    process has more than 100 threads of Python, of which faulthandler shows the newest."""
    file = os.memfd_create("stack") if hasattr(os, "memfd_create") else os.open(os.devnull, os.O_RDWR)
    try:
        faulthandler.dump_traceback(file, all_threads=True)
        text = os.pread(file, os.lseek(file, 0, os.SEEK_CUR), 0).decode(errors="replace")
    finally:
        os.close(file)
    for part in text.split("\n\n"):
        heading = re.match(r"\s*(?:Current thread|Thread) (0x[0-9a-f]+)", part)
        if heading and int(heading[1], 16) == thread:
            return [Place(*found.groups()) for found in _LINE.finditer(part)]
    return []


def waits_for(thread: int) -> str | None:
    """What a thread waits for outside of the run, where its stack shows it (a lock, a compiler), in words; None where nothing
    known stands there."""
    for place in stack_of(thread):
        if place.path.endswith("torch/utils/file_baton.py") and place.function == "wait":
            path = getattr(_variable(thread, place, "self"), "lock_file_path", "of torch's extensions")
            return f"the lock {path}, of a process that compiles, or of one that was killed: delete it when none does"
        if place.path.endswith("torch/utils/cpp_extension.py") and place.function == "_run_ninja_build":
            return f"the compiler of an extension, in {_variable(thread, place, 'build_directory') or 'a build folder'}"
    return None


def _variable(thread: int, place: Place, name: str):
    """A variable of the function at that place, if it still runs."""
    frame = sys._current_frames().get(thread)
    while frame is not None and (frame.f_code.co_filename, frame.f_code.co_name) != (place.path, place.function):
        frame = frame.f_back
    return frame and frame.f_locals.get(name)
