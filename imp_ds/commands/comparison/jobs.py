"""What a comparison consists of: a run for each router and seed, by the project's own commands, and what of it is done."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from imp_ds import foreign_code
from imp_ds.config import FILE_NAME, RunConfig
from imp_ds.errors import UserError
from imp_ds.json_files import parse_json, read_json
from imp_ds.recipes import get_recipe
from imp_ds.recipes.routers import ROUTERS
from imp_ds.train.run_folder import RESULTS

INTERFERENCE = "interference.json"
AGAIN = "delete the file, and give the same command again"
# the last linear layer of every feed-forward, plain or of experts: shared by the tasks in some layers, conditional in the others
WEIGHTS = "imp.blocks.*.feed_forward.down.*"
_SHOWN = 3  # differences that a message names


@dataclass(frozen=True)
class Job:
    """One router from one seed: trained, then asked how its tasks interfered after a third of the steps. `folder` is the run's
    output folder.

    After a third, since the measure divides by what steps of a task's own do: when it has learned its data by heart, these help
    it no more than they harm it.
    """

    router: str
    seed: int
    folder: Path
    settings: tuple[str, ...]
    samples: int

    @property
    def name(self) -> str:
        return f"{self.router}_{self.seed}"

    @property
    def log(self) -> Path:
        """What its commands print; not in the run's folder, which must be new."""
        return self.folder.parent.parent / "logs" / f"{self.name}.log"

    def run(self) -> RunConfig:
        """Raises UserError for a setting that cannot be."""
        return get_recipe(f"routers_{self.router}").override(list(self.settings))

    def command(self) -> list[str] | None:
        """What is to be done next; None: the job is done. What a killed command left is gone on with."""
        more = foreign_code.options()
        ours = [sys.executable, "-m", "imp_ds"]
        if not (self.folder / RESULTS).is_file():
            changes = [f"--set={setting}" for setting in self.settings]
            where = ["--output_dir", str(self.folder), "--resume", "auto"]
            return [*ours, "train", f"routers_{self.router}", *changes, *where, *more]
        if not (self.folder / INTERFERENCE).is_file():
            options = {"--step": self.run().train.milestone_every, "--weight": WEIGHTS, "--samples": self.samples}
            words = [str(word) for option in options.items() for word in option]
            return [*ours, "interference", str(self.folder), *words, *more]
        return None

    def steps_done(self) -> int:
        """As far as the run has reported; it reports now and then."""
        try:
            lines = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            return max((parse_json(line, "metrics.jsonl", dict).get("step", 0) for line in lines), default=0)
        except (OSError, ValueError, TypeError):  # not there yet, or just being written
            return 0

    def check(self) -> None:
        """Raise UserError when the folder holds a run that was started differently."""
        if not (self.folder / FILE_NAME).is_file():
            return
        changed = _differences(RunConfig.load(self.folder).model_dump(mode="json"), self.run().model_dump(mode="json"))
        samples = self._measured_samples()
        if samples not in (None, self.samples):
            changed.append(f"samples: {samples} -> {self.samples}")
        if changed:
            raise UserError(
                "the output folder holds another comparison",
                got=f"{self.folder}: " + "; ".join(changed[:_SHOWN]) + (" ..." if changed[_SHOWN:] else ""),
                allowed="to go on with a comparison, the data, steps and settings that it was begun with",
                fix="give those, or take another folder",
            )  # fmt: skip

    def _measured_samples(self) -> int | None:
        path = self.folder / INTERFERENCE
        return read_json(path, dict, AGAIN).get("samples") if path.is_file() else None


def plan_jobs(
    out: Path, routers: list[str], seeds: int, *, data: Path, steps: int | None, samples: int, settings: list[str]
) -> list[Job]:
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
        jobs += [Job(router, seed, out / "runs" / f"{router}_{seed}", changes, samples) for router in chosen]
    for job in jobs:
        job.run()
        job.check()
    return jobs


def _differences(before: object, now: object, path: str = "") -> list[str]:
    """What two configurations do not share, as "path: before -> now"."""
    if isinstance(before, dict) and isinstance(now, dict):
        pairs = [(f"{path}.{key}".strip("."), before.get(key), now.get(key)) for key in (before | now)]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = [(f"{path}.{number}", *pair) for number, pair in enumerate(zip(before, now))]
    else:
        return [] if before == now else [f"{path}: {json.dumps(before)} -> {json.dumps(now)}"]
    return [found for key, old, new in pairs for found in _differences(old, new, key)]
