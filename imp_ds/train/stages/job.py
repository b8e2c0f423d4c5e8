"""What a process that was started for one stage is to do: it runs the same command, with this in its environment."""

import json
import os
from typing import NamedTuple

VARIABLE = "IMP_DS_STAGE"


class Job(NamedTuple):
    """Train the run of `stage` and export its model. resume: of `--resume`. alone: on all ranks, not beside other stages."""

    stage: str
    resume: str | None = None
    alone: bool = True

    def variables(self) -> dict[str, str]:
        """What the environment of its process has more."""
        return {VARIABLE: json.dumps(self)}


def own_job() -> Job | None:
    """The job of this process; None: it is not one of a stage."""
    return Job(*json.loads(os.environ[VARIABLE])) if VARIABLE in os.environ else None
