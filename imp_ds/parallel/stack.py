"""Where another thread stands.

A frame that is taken from another thread keeps its variables alive after its function has returned. In a backward pass of ZeRO 3
these are gradient accumulators of partitioned parameters, whose shape is [0]; one that lives on until the next forward makes its
backward fail with "returned an invalid gradient ... expected shape compatible with [0]". So frames are let go at once, and nobody
looks at a thread that has just made progress. (faulthandler, which takes no frames, crashes now and then: it reads threads that
are being made, as those of a backward pass are.)
"""

import os
import sys
from types import FrameType
from typing import NamedTuple


class Place(NamedTuple):
    """A line of a stack."""

    path: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{os.path.basename(self.path)}:{self.line} in {self.function}"


def stack_of(thread: int) -> list[Place]:
    """The stack of a thread by its identity (threading.get_ident), innermost first; empty when the thread is gone."""
    frame, found = sys._current_frames().get(thread), []
    # a frame that ends while it is looked at may be gone, and its place hold anything else
    while isinstance(frame, FrameType):
        found.append(Place(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return found


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
    while isinstance(frame, FrameType) and (frame.f_code.co_filename, frame.f_code.co_name) != (place.path, place.function):
        frame = frame.f_back
    return frame.f_locals.get(name) if isinstance(frame, FrameType) else None
