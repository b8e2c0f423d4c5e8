"""SIGTERM, SIGUSR1 or Ctrl-C (SIGINT): a checkpoint after the step that is being done, a clean end, and an exit code: 75, to
requeue on, or 130 after Ctrl-C, as a shell has it.

A scheduler that wants its machines back sends a signal some time before it kills; it may reach all ranks or only one. So
a signal only leaves a note here, the ranks agree on it in the exchange that they have in every step anyway, and all of
them stop after the same one.

    with Preemption() as preemption:
        ...                                       # a step
        if not all ranks have `not preemption.requested`:
            ...                                   # save
            raise preemption.preempted(step, folder)
"""

import os
import signal
import threading
import time
from pathlib import Path

import torch.distributed as dist

from imp_ds.parallel import launcher_watch
from imp_ds.parallel.groups import world_size
from imp_ds.terminal.interrupted import INTERRUPTED

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: "the user is invited to retry"
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_SAME_S = 2.0  # launchers pass on what the terminal or the scheduler has sent to the whole group already


class Preempted(Exception):
    """The run has stopped as it was asked to, after a checkpoint; raised by all ranks. The process ends with `code`."""

    shared = True

    def __init__(self, text: str, code: int = EXIT_CODE):
        super().__init__(text)
        self.code = code


class Preemption:
    """Listens for the signals from `with` to its end; the main thread enters.

    A second signal, more than two seconds after the first, ends the process at once with exit code 128 + its number. It is a
    thread that listens: the interpreter would call a handler only when the main thread is back from what it waits for, and
    a rank that hangs in a collective operation never is.
    """

    def __init__(self):
        self.received: str | None = None  # the name of the signal
        self.starting = False  # set while there is nothing to save yet: the first signal ends the process at once

    @property
    def requested(self) -> bool:
        return self.received is not None

    def preempted(self, step: int, checkpoint: Path) -> Preempted:
        """What to raise after `checkpoint` has been written at `step`. All ranks call it."""
        found = [self.received]
        if world_size() > 1:
            found = [None] * world_size()
            dist.all_gather_object(found, self.received)
        if signal.SIGINT.name in found:  # a launcher makes SIGTERM of it for some of the ranks
            code, signals = INTERRUPTED, "Ctrl-C"
        else:
            code, names = EXIT_CODE, sorted({name for name in found if name})
            signals = ", ".join(f"{name} to {_places([i for i, one in enumerate(found) if one == name])}" for name in names)
        return Preempted(
            f"stopped after step {step} by {signals}\n  saved:   {checkpoint}\n"
            f"  go on:   the same command with --resume auto (exit code {code})", code,
        )  # fmt: skip

    def __enter__(self) -> "Preemption":
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        # a handler of any kind, so that the signal is written to the pipe instead of ending the process
        # a shell has its background jobs ignore Ctrl-C, and so it stays
        handled = [number for number in SIGNALS if number != signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN]
        self._handlers = {number: signal.signal(number, lambda number, frame: None) for number in handled}
        threading.Thread(target=self._listen, args=(reader,), name="preemption", daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._writer)  # ends the thread

    def _listen(self, reader: int) -> None:
        first = None
        while came := os.read(reader, 64):
            now = time.monotonic()
            for number in came:
                if number not in SIGNALS:  # another handler's
                    continue
                if self.starting:
                    os.write(2, f"{_called(number)} during the start: nothing to save, ending at once\n".encode())
                    os._exit(INTERRUPTED if number == signal.SIGINT else EXIT_CODE)
                if first is None:
                    first, self.received = now, signal.Signals(number).name
                    launcher_watch.release()
                    if number == signal.SIGINT and not int(os.environ.get("RANK", "0")):
                        os.write(2, b"Ctrl-C: stopping after this step, with a checkpoint; once more ends at once\n")
                elif now - first > _SAME_S:
                    os.write(2, f"{_called(number)} again: ending at once\n".encode())
                    os._exit(128 + number)
        os.close(reader)


def _called(number: int) -> str:
    """A signal as messages name it."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def _places(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"rank {ranks[0]} and {len(ranks) - 1} more"
