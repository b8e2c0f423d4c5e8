"""What a rank that stands still waits for outside of the run, where its stack shows it: a lock, a compiler."""

from types import FrameType


def waits_for(frame: FrameType | None) -> str | None:
    """What the thread of this innermost frame waits for, in words; None where nothing known stands there."""
    # a frame that ends while it is looked at from another thread may be gone, and its place hold anything else
    while isinstance(frame, FrameType):
        module, function = frame.f_globals.get("__name__", ""), frame.f_code.co_name
        if module == "torch.utils.file_baton" and function == "wait":
            path = getattr(frame.f_locals.get("self"), "lock_file_path", "of torch's extensions")
            return f"the lock {path}, of a process that compiles, or of one that was killed: delete it when none does"
        if module == "torch.utils.cpp_extension" and function == "_run_ninja_build":
            return f"the compiler of an extension, in {frame.f_locals.get('build_directory', 'a build folder')}"
        frame = frame.f_back
    return None
