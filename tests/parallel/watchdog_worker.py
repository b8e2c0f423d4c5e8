"""One rank of tests/parallel/test_watchdog.py: a loop of small steps under the watchdog, in which rank `culprit` goes wrong."""

import os
import signal
import sys
import time

import torch
import torch.distributed as dist

from imp_ds.errors import UserError
from imp_ds.parallel.watchdog import Watchdog

TIMEOUT_S, INTERVAL_S = 3.0, 0.1
BAD_STEP = 3


def _killed(watchdog):
    os.kill(os.getpid(), signal.SIGKILL)


def _stopped(watchdog):
    os.kill(os.getpid(), signal.SIGSTOP)


def _sleeping(watchdog):
    time.sleep(1000)


def _failing(watchdog):
    raise ValueError("a fault of my own")


def _refusing(watchdog):
    raise UserError("this file cannot be used", got="x.png")


def _slow(watchdog):
    watchdog.progress(BAD_STEP, "evaluating", at_least_s=30)
    time.sleep(1.5 * TIMEOUT_S)


def _leaving(watchdog):
    watchdog.__exit__(None, None, None)
    time.sleep(1000)


FAULTS = {
    "killed": _killed, "stopped": _stopped, "sleeping": _sleeping, "failing": _failing, "refusing": _refusing, "slow": _slow,
    "leaving": _leaving,
}  # fmt: skip


def loop(fault: str, culprit: int) -> None:
    """Six steps, each with an exchange in the midst of it."""
    dist.init_process_group("gloo")
    with Watchdog(TIMEOUT_S, interval_s=INTERVAL_S) as watchdog:
        for step in range(6):
            # all ranks meet the long phase together
            watchdog.progress(step, "training", at_least_s=30 if (fault, step) == ("slow", BAD_STEP) else 0)
            dist.all_reduce(torch.ones(4))
            if step == BAD_STEP and dist.get_rank() == culprit:
                time.sleep(3 * INTERVAL_S)  # so that the others have heard of this step
                FAULTS[fault](watchdog)
            dist.all_reduce(torch.ones(4))
    print("done", flush=True)
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)


def all_fail() -> None:
    """All ranks raise the same, which is nobody's fault."""
    dist.init_process_group("gloo")
    with Watchdog(TIMEOUT_S, interval_s=INTERVAL_S):
        raise UserError("all agree on this", shared=True)


def refuse_alike(late_s: float) -> None:
    """All ranks refuse the same, one of them later, without knowing of each other."""
    dist.init_process_group("gloo")
    with Watchdog(TIMEOUT_S, interval_s=INTERVAL_S):
        time.sleep(late_s * dist.get_rank())
        raise UserError("this file cannot be used", got="x.png")


def sleep_alone() -> None:
    """A world of one process, without a process group."""
    with Watchdog(1.0, interval_s=INTERVAL_S) as watchdog:
        watchdog.progress(7, "training")
        time.sleep(1000)
