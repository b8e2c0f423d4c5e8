"""Ctrl-C, or SIGINT by another way: one line instead of a traceback, and the exit code that a shell gives for it."""

import os
import signal
import sys

INTERRUPTED = 128 + signal.SIGINT


def leave_interrupted() -> None:
    """End this process after Ctrl-C, with exit code 130 and, on rank 0, a line. A second Ctrl-C ends it at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if not int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0):
        sys.stderr.write("stopped by Ctrl-C\n")
    sys.stdout.flush()
    sys.stderr.flush()
    if "torch.distributed" in sys.modules and sys.modules["torch.distributed"].is_initialized():
        os._exit(INTERRUPTED)  # a clean end would wait for the other ranks
    sys.exit(INTERRUPTED)
