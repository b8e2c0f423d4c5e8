"""Signals: a note for the next exchange, the message of the end, and a second signal that ends at once whatever goes on."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from helpers.ranks import Ranks
from imp_ds.parallel.groups import all_reduce_mean
from imp_ds.train.preemption import EXIT_CODE, Preempted, Preemption


def soon(condition) -> bool:
    """Whether it comes true within five seconds."""
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_leaves_a_note(number):
    before = signal.getsignal(number)
    with Preemption() as preemption:
        assert not preemption.requested
        os.kill(os.getpid(), number)
        assert soon(lambda: preemption.requested)
        os.kill(os.getpid(), number)  # what a launcher passes on, right after: the same request
        time.sleep(0.1)
        end = preemption.preempted(12, Path("runs/x/checkpoints/step_00000012"))
    assert signal.getsignal(number) is before
    assert isinstance(end, Preempted) and end.shared
    assert str(end).splitlines() == [
        f"stopped after step 12 by {number.name} to rank 0",
        "  saved:   runs/x/checkpoints/step_00000012",
        "  go on:   the same command with --resume auto (exit code 75)",
    ]


def test_ctrl_c_is_reported_as_such_and_has_its_own_exit_code(capfd):
    before = signal.getsignal(signal.SIGINT)
    with Preemption() as preemption:
        os.kill(os.getpid(), signal.SIGINT)
        assert soon(lambda: preemption.requested)
        os.kill(os.getpid(), signal.SIGTERM)  # what the launcher of deepspeed makes of it
        time.sleep(0.1)
        end = preemption.preempted(12, Path("runs/x/checkpoints/step_00000012"))
    assert signal.getsignal(signal.SIGINT) is before and end.code == 130
    assert str(end).splitlines() == [
        "stopped after step 12 by Ctrl-C",
        "  saved:   runs/x/checkpoints/step_00000012",
        "  go on:   the same command with --resume auto (exit code 130)",
    ]
    assert capfd.readouterr().err == "Ctrl-C: stopping after this step, with a checkpoint; once more ends at once\n"


def test_a_background_job_goes_on_ignoring_ctrl_c():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Preemption() as preemption:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
            assert not preemption.requested
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_signals_are_none_of_its_business():
    came = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: came.append(number))
    try:
        with Preemption() as preemption:
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(0.1)
            assert came == [signal.SIGUSR2] and not preemption.requested
    finally:
        signal.signal(signal.SIGUSR2, before)


def listening() -> bool:
    return any(thread.name == "preemption" for thread in threading.enumerate())


def test_nothing_of_it_is_left():
    with Preemption():
        assert listening()
    assert soon(lambda: not listening())


def stuck() -> None:
    """A lock that is never released stands for a collective that never ends: with the signals blocked in the main thread no
    handler of the interpreter runs there."""
    with Preemption():
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
        print("ready", flush=True)
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()


def test_the_second_signal_ends_a_process_that_is_stuck(tmp_path):
    one = Ranks(stuck, ranks=1, folder=tmp_path)
    try:
        one.await_output("ready\n")
        one.send(signal.SIGUSR1)
        time.sleep(2.3)
        assert one.alive()
        one.send(signal.SIGTERM)
        ended = one.wait(5)
    finally:
        one.kill()
    assert ended.codes == [128 + signal.SIGTERM] and ended.outputs == ["ready\nSIGTERM again: ending at once\n"]


def loop(stop_at: int) -> None:
    """Steps of the trainer's kind, in which rank 1 alone is signalled."""
    dist.init_process_group("gloo")
    with Preemption() as preemption:
        for step in range(1, 1000):
            if step == stop_at and dist.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGUSR1)
                assert soon(lambda: preemption.requested)
            (go_on,), _ = all_reduce_mean([not preemption.requested], {"loss": torch.zeros(())})
            if not go_on:
                print(preemption.preempted(step, Path("folder")), flush=True)
                sys.stdout.flush()
                os._exit(EXIT_CODE)


@pytest.mark.distributed
def test_all_ranks_stop_after_the_same_step(tmp_path):
    end = Ranks(loop, 5, ranks=2, folder=tmp_path).wait(30)
    assert end.codes == [EXIT_CODE] * 2, str(end)
    assert all(text.startswith("stopped after step 5 by SIGUSR1 to rank 1\n") for text in end.outputs), str(end)


def starting() -> None:
    with Preemption() as preemption:
        preemption.starting = True
        print("ready", flush=True)
        time.sleep(60)


@pytest.mark.parametrize("number, name, code", [(signal.SIGTERM, "SIGTERM", EXIT_CODE), (signal.SIGINT, "Ctrl-C", 130)])
def test_while_there_is_nothing_to_save_the_first_signal_ends_at_once(number, name, code, tmp_path):
    one = Ranks(starting, ranks=1, folder=tmp_path)
    try:
        one.await_output("ready\n")
        one.send(number)
        ended = one.wait(5)
    finally:
        one.kill()
    assert ended.codes == [code]
    assert ended.outputs[0].endswith(f"{name} during the start: nothing to save, ending at once\n")
