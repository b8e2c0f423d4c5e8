"""What a comparison of routers consists of: a run for each router and seed, by our own commands, and what of it is done."""

import sys
from dataclasses import dataclass
from pathlib import Path

from imp_ds import foreign_code
from imp_ds.commands.comparison.job import AGAIN, Job
from imp_ds.errors import UserError
from imp_ds.json_files import read_json
from imp_ds.recipes import get_recipe
from imp_ds.recipes.routers import ROUTERS

INTERFERENCE = "interference.json"
# the last linear layer of every feed-forward, plain or of experts: shared by the tasks in some layers, conditional in the others
WEIGHTS = "imp.blocks.*.feed_forward.down.*"


@dataclass(frozen=True)
class RouterJob(Job):
    """One router from one seed: trained, then asked how its tasks interfered after a third of the steps.

    After a third, since the measure divides by what steps of a task's own do: when it has learned its data by heart, these help
    it no more than they harm it.
    """

    samples: int

    def command(self) -> list[str] | None:
        if (training := super().command()) is not None:
            return training
        if (self.folder / INTERFERENCE).is_file():
            return None
        options = {"--step": self.run().train.milestone_every, "--weight": WEIGHTS, "--samples": self.samples}
        words = [str(word) for option in options.items() for word in option]
        return [sys.executable, "-m", "imp_ds", "interference", str(self.folder), *words, *foreign_code.options()]

    def changed(self) -> list[str]:
        path, found = self.folder / INTERFERENCE, super().changed()
        samples = read_json(path, dict, AGAIN).get("samples") if path.is_file() else None
        return found if samples in (None, self.samples) else [*found, f"samples: {samples} -> {self.samples}"]


def plan_jobs(
    out: Path, routers: list[str], seeds: int, *, data: Path, steps: int | None, samples: int, settings: list[str]
) -> list[RouterJob]:
    """The jobs of a comparison in the folder `out`: all routers from the first seed, then from the next.

    Args:
        routers: of ROUTERS; empty: all of them.
        seeds: how many; they are 0, 1, ...: of the weights, the order of the data and all that is random.
        data: the digits corpus.
        steps: of each run; None takes the recipe's.
        samples: gradients of each task of which the interference is measured.
        settings: additional changes of each run, "path=value".

    Raises UserError for an unknown router, a setting that cannot be, and a folder that holds another comparison.
    """
    if unknown := [name for name in routers if name not in ROUTERS]:
        raise UserError("unknown router", got=", ".join(unknown), allowed=", ".join(ROUTERS))
    length = [] if steps is None else [f"train.steps={steps}"]
    third = max(1, get_recipe(f"routers_{ROUTERS[0]}").override(length).train.steps // 3)
    kept = [f"train.save_every={third}", f"train.milestone_every={third}"]
    jobs = []
    for seed in range(seeds):
        changes = (f"data.root={data}", f"data.seed={seed}", f"train.seed={seed}", *length, *kept, *settings)
        chosen = [router for router in ROUTERS if router in routers or not routers]
        jobs += [
            RouterJob(router, seed, out / "runs" / f"{router}_{seed}", f"routers_{router}", changes, samples) for router in chosen
        ]
    for job in jobs:
        job.run()
        job.check()
    return jobs
