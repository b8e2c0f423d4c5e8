"""The process of a stage, and the signals that are meant for it: what this process gets, it passes on."""

import os
import signal
import subprocess
from collections.abc import Sequence

from imp_ds.parallel import launcher_watch
from imp_ds.terminal.interrupted import INTERRUPTED
from imp_ds.train.preemption import EXIT_CODE, SIGNALS, Preempted


class Relay:
    """From `with` to its end SIGTERM, SIGUSR1 and Ctrl-C go on to the process that runs. The main thread enters.

    received: the number of the first signal; None: there was none.
    """

    def __init__(self):
        self.received: int | None = None
        self._child: subprocess.Popen | None = None

    def run(self, command: Sequence[str], variables: dict[str, str]) -> int:
        """Run a command to its end, with these variables beside those of this process.

        Returns its exit code. Where a signal that was passed on killed it, it had nothing to save: the code is that of a stop.
        After another signal N it is 128 + N.
        """
        environ = os.environ | variables | {launcher_watch.PARENT: str(os.getpid())}
        self._child = subprocess.Popen(command, env=environ)
        if self.received is not None:  # it came before there was somebody to pass it on to
            self._pass_on(self.received)
        code = self._child.wait()
        self._child = None
        if -code in SIGNALS and self.received is not None:
            return _code(self.received)
        return 128 - code if code < 0 else code

    def stopped(self, number: int) -> Preempted:
        """What to raise when the signal `number` came between two stages."""
        called = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        code = _code(number)
        text = f"stopped between two stages by {called}\n  go on:   the same command with --resume auto (exit code {code})"
        return Preempted(text, code)

    def __enter__(self) -> "Relay":
        # a shell has its background jobs ignore Ctrl-C, and so it stays
        handled = [number for number in SIGNALS if number != signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN]
        self._handlers = {number: signal.signal(number, self._handle) for number in handled}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame) -> None:
        launcher_watch.release()  # the launcher may have been asked to stop too
        if self.received is None:
            self.received = number
        self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        if self._child is not None:
            self._child.send_signal(number)


def _code(number: int) -> int:
    """The exit code after this signal."""
    return INTERRUPTED if number == signal.SIGINT else EXIT_CODE
