"""One rank of tests/distributed/test_survival.py: the train command, in which something happens to a rank in mid-step."""

import os
import signal
import time

from helpers.ranks import command
from imp_ds.parallel import watchdog
from imp_ds.train.engine.engine import Engine

STEP = 7  # steps that are done when it happens: each of the six tasks has had its first, which may take longer


def signalled(number: int):
    os.kill(os.getpid(), number)


def fail():
    raise KeyError("a fault of this rank")


HAPPENINGS = {
    "usr1": lambda: signalled(signal.SIGUSR1), "term": lambda: signalled(signal.SIGTERM),
    "killed": lambda: signalled(signal.SIGKILL), "sleeping": lambda: time.sleep(1000), "failing": fail,
}  # fmt: skip


def train(happening: str, culprit: str, *command_line: str) -> None:
    """The command, with `happening` between forward and backward of the step after STEP on the rank `culprit` ("all": on all)."""
    calls = 0
    update = Engine.update

    def interrupted(engine, *arguments, **keywords):
        nonlocal calls
        calls += 1
        if calls == STEP + 1 and culprit in ("all", os.environ["RANK"]):
            time.sleep(0.5)  # the others have heard of this step
            HAPPENINGS[happening]()
        return update(engine, *arguments, **keywords)

    Engine.update = interrupted
    watchdog.Watchdog.__init__.__kwdefaults__["interval_s"] = 0.1
    command(*command_line)
