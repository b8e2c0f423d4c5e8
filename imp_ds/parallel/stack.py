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


def look_at(thread: int) -> tuple[list[Place], str | None]:
    """The stack of a thread by its identity (threading.get_ident), innermost first, empty when the thread is gone; and what it
    waits for outside of the run, where its stack shows it (a lock, a compiler), in words."""
    frame, found, waits = sys._current_frames().get(thread), [], None
    # a frame that ends while it is looked at may be gone, and its place hold anything else
    while isinstance(frame, FrameType):
        found.append(Place(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        waits = waits or _waits_for(found[-1], frame)
        frame = frame.f_back
    return found, waits


def _waits_for(place: Place, frame: FrameType) -> str | None:
    """What the function at a place waits for, which nobody of the run can give; variables are read of such a function alone."""
    if place.path.endswith("torch/utils/file_baton.py") and place.function == "wait":
        path = getattr(frame.f_locals.get("self"), "lock_file_path", "of torch's extensions")
        return f"the lock {path}, of a process that compiles, or of one that was killed: delete it when none does"
    if place.path.endswith("torch/utils/cpp_extension.py") and place.function == "_run_ninja_build":
        return f"the compiler of an extension, in {frame.f_locals.get('build_directory') or 'a build folder'}"
    return None
