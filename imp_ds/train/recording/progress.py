"""How far the run is: a bar on a terminal, one plain line for each log interval in a file."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from imp_ds.terminal.printable import printable


class Progress:
    """Reports steps to a person. Only rank 0 makes an enabled one; a disabled one does nothing.

    Args:
        total: steps of the run.
        start: steps done before this process.
        stream: where to write; None is standard output.
    """

    def __init__(self, total: int, start: int = 0, *, enabled: bool = True, stream=None):
        self.total, self.done, self.enabled = total, start, enabled
        self._stream = sys.stdout if stream is None else stream
        self._bar, self._since = None, (time.perf_counter(), start)
        self.rate = 0.0
        if not enabled:
            return
        console = Console(file=self._stream)
        if console.is_terminal:
            columns = [BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn()]
            self._bar = Bar(*columns, console=console, refresh_per_second=4)
            self._row = self._bar.add_task("steps", total=total, completed=start, note="")
            self._bar.start()

    def advance(self, done: int) -> None:
        """`done` steps are done."""
        self.done = done
        if self._bar is not None:
            self._bar.update(self._row, completed=done)

    def report(self, losses: dict[str, float], facts: str) -> None:
        """The end of a log interval: mean loss of each task that trained in it, and other facts, in words."""
        if not self.enabled:
            return
        self._measure()
        seconds = (self.total - self.done) / self.rate if self.rate else 0.0
        left = f"{self.rate:.1f} steps/s, {duration(seconds)} left"
        known = "  ".join(f"{task} {loss:.3f}" for task, loss in losses.items())
        if self._bar is not None:
            mean = sum(losses.values()) / max(1, len(losses))
            self._bar.update(self._row, note=f"loss {mean:.3f}  {facts}  {left}")
        else:
            self.log(f"step {self.done}/{self.total}  {known}  {facts}  {left}")

    def log(self, line: str) -> None:
        """One line, above the bar where there is one; control characters in a user's data cannot end it."""
        line = printable(line)
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        elif self.enabled:
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _measure(self) -> None:
        """Steps per second since the last report."""
        now, (before, done) = time.perf_counter(), self._since
        if self.done > done:
            self.rate = (self.done - done) / max(now - before, 1e-9)
        self._since = (now, self.done)


def duration(seconds: float) -> str:
    """45 s, 3 min 20 s, 2 h 5 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    return f"{minutes // 60} h {minutes % 60} min"
