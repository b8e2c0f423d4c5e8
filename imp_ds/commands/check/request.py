"""What is asked of a check of the data."""

import os
from dataclasses import dataclass
from pathlib import Path

from imp_ds.config import RunConfig
from imp_ds.data.order.subset import Subset, spread_over
from imp_ds.data.reader import Reader
from imp_ds.planning.check_plan import NoPlan
from imp_ds.planning.plan import Plan


def available_cores() -> int:
    """Of this machine those that this process may use."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class CheckRequest:
    """Which corpus is looked at, and how much of it.

    plan: of the run that is to be fed.
    samples: looked at of each source, spread over it; None: all.
    processes: that look; None: one for each core; 0: this one.
    trained: folder of a run whose processor is taken; None: one is made.
    """

    run: RunConfig
    plan: Plan | NoPlan
    split: str = "train"
    samples: int | None = None
    processes: int | None = None
    trained: Path | None = None

    @property
    def number_of_processes(self) -> int:
        return available_cores() if self.processes is None else self.processes

    def rows(self, reader: Reader) -> Subset:
        """Those of a source that are looked at."""
        return spread_over(reader, len(reader) if self.samples is None else self.samples)
