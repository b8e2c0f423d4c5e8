"""Progress of long work in named stages: bars on a terminal, plain lines elsewhere."""

import sys
import time

from imp_ds.terminal.printable import printable

_LINE_S = 30.0  # from one plain line of a stage to the next


class StageProgress:
    """A bar for each stage on a terminal; elsewhere a line at the end of each stage, and now and then in between.

    Used as a context; called with (stage, done, total).
    """

    def __enter__(self):
        from rich.progress import MofNCompleteColumn, Progress

        self.bar, self.tasks, self._last_line = None, {}, {}
        if sys.stdout.isatty():
            self.bar = Progress(*Progress.get_default_columns(), MofNCompleteColumn())
            self.bar.start()
        return self

    def __exit__(self, *error):
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        stage = printable(stage)  # it may name a class's folder
        if self.bar is None:
            self._say(stage, done, total)
            return
        if stage not in self.tasks:
            self.tasks[stage] = self.bar.add_task(stage, total=total)
        self.bar.update(self.tasks[stage], completed=done, total=total)

    def _say(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done >= total:
            print(f"{stage}: {done}", flush=True)
        elif now - self._last_line.setdefault(stage, now) > _LINE_S:
            self._last_line[stage] = now
            print(f"{stage}: {done} of {total}", flush=True)
