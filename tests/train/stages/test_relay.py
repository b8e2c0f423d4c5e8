"""Signals that a rank gets while the process of a stage runs, and before it does; exit codes that come back."""

import os
import signal
import sys
import threading
import time

import pytest

from imp_ds.train.preemption import Preempted
from imp_ds.train.stages.relay import Relay

CHILD = """
import signal, sys, time
signal.signal(signal.SIGUSR1, lambda number, frame: sys.exit(76))
open(sys.argv[1], "w").close()
time.sleep(20)
"""


def send_when_there(path, number: int) -> None:
    while not path.exists():
        time.sleep(0.01)
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number, code", [(signal.SIGUSR1, 76), (signal.SIGTERM, 75)])
def test_a_signal_is_passed_on_and_the_exit_code_comes_back(number, code, tmp_path):
    before = signal.getsignal(number)
    with Relay() as relay:
        threading.Thread(target=send_when_there, args=(tmp_path / "there", number), daemon=True).start()
        assert relay.run([sys.executable, "-c", CHILD, str(tmp_path / "there")], {}) == code
        assert relay.received == number
    assert signal.getsignal(number) is before


def test_a_signal_that_came_before_is_passed_on_too():
    with Relay() as relay:
        os.kill(os.getpid(), signal.SIGTERM)
        assert relay.run([sys.executable, "-c", "import time; time.sleep(20)"], {}) == 75  # it had nothing to save
    assert Relay().run([sys.executable, "-c", "import os; os._exit(len(os.environ['A_B']))"], {"A_B": "abc"}) == 3


def test_the_end_of_a_process_that_nobody_asked_to_stop_is_its_own():
    with Relay() as relay:
        for number in (signal.SIGTERM, signal.SIGKILL):
            killing = f"import os; os.kill(os.getpid(), {int(number)})"
            assert relay.run([sys.executable, "-c", killing], {}) == 128 + number


def test_what_is_said_between_two_stages():
    end = Relay().stopped(signal.SIGINT)
    assert isinstance(end, Preempted) and end.code == 130
    assert str(end) == "stopped between two stages by Ctrl-C\n  go on:   the same command with --resume auto (exit code 130)"
    assert Relay().stopped(signal.SIGTERM).code == 75
