"""What a comparison of experts consists of: a run for each variant and seed."""

import sys
from dataclasses import dataclass
from pathlib import Path

from imp_ds import foreign_code
from imp_ds.commands.comparison.experts.variants import is_asked_alone, layers_of, variants_of, varied
from imp_ds.commands.comparison.job import Job, differences
from imp_ds.config import RunConfig
from imp_ds.errors import UserError
from imp_ds.evaluation.missing_splits import final_split
from imp_ds.moe.placement import placed_layers
from imp_ds.train.run_folder import RESULTS
from imp_ds.written_files import write_file


@dataclass(frozen=True)
class ExpertsJob(Job):
    """One variant from one seed. `made` is its run, which lies in the file that `recipe` names when it is trained."""

    made: RunConfig

    def run(self) -> RunConfig:
        return self.made

    def write(self) -> None:
        """The file of the run. Raises OSError."""
        path = Path(self.recipe)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, self.made.model_dump_json(indent=2) + "\n")


@dataclass(frozen=True)
class AskedJob(ExpertsJob):
    """A model that is there already, and is asked what the others are asked when they are trained. `made` is a run of which it
    could be, with its folder as the language model."""

    steps = 0

    def command(self) -> list[str] | None:
        """`imp_ds eval`, on the split that the others' final scores are of; None: it is done."""
        if (self.folder / RESULTS).is_file():
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        what = ["--recipe", self.recipe, "--split", final_split(self.made)[0], "--output", str(self.folder / RESULTS)]
        return [sys.executable, "-m", "imp_ds", "eval", self.made.model.language_model, *what, *foreign_code.options()]

    def changed(self) -> list[str]:
        return differences(RunConfig.load(self.recipe).model_dump(mode="json"), self.made.model_dump(mode="json"))

    def is_begun(self) -> bool:
        return (self.folder / RESULTS).is_file() and Path(self.recipe).is_file()


def plan_jobs(
    out: Path, run: RunConfig, variants: list[str], seeds: int, settings: list[str]
) -> tuple[list[ExpertsJob], dict[str, str]]:
    """The jobs of a comparison in the folder `out`: all variants from the first seed, then from the next; and of each variant the
    one whose runs it shares, since they are equal: itself, or one before it.

    Args:
        run: of the recipe. variants: and sets of them; empty: all that it can have.
        seeds: how many; they are 0, 1, ...: of the weights, the order of the data and all that is random.
        settings: further changes of each run, "path=value".

    Raises UserError for an unknown variant, one that the recipe cannot have, and a folder that holds another comparison.
    """
    run = _with_media(run.override(settings))
    runs = {name: varied(run, name) for name in variants_of(run, variants)}
    if all(map(is_asked_alone, runs)):
        raise UserError("nothing is trained that specialists could be compared with", got=", ".join(runs), fix="--variant recipe")
    shares, jobs = _shares(runs), []
    for seed in range(seeds):
        seeded = [f"data.seed={seed}", f"train.seed={seed}"]
        for name in dict.fromkeys(shares.values()):
            if seed and is_asked_alone(name):
                continue
            folder = out / "runs" / f"{name}_{seed}"
            file = out / "recipes" / f"{name}_{seed}.json"
            kind = AskedJob if is_asked_alone(name) else ExpertsJob
            jobs.append(kind(name, seed, folder, str(file), (), runs[name].override(seeded)))
    for job in jobs:
        job.check()
    return jobs, shares


def _with_media(run: RunConfig) -> RunConfig:
    """The run whose evaluations ask with the right media alone: answers without them are not compared."""
    evaluations = [
        record.model_copy(update={"options": record.options | {"blind": False, "shuffled": False}})
        if record.evaluator == "answers" else record
        for record in run.evaluations
    ]  # fmt: skip
    return run.model_copy(update={"evaluations": evaluations})


def _shares(runs: dict[str, RunConfig]) -> dict[str, str]:
    """{variant: the first one whose run is equal but for its name}; what is trained and what is not are never equal."""
    first = {}
    return {name: first.setdefault((is_asked_alone(name), _spelled_out(run)), name) for name, run in runs.items()}


def _spelled_out(run: RunConfig) -> str:
    """All that a run is, without its name; layers by their numbers."""
    layers = placed_layers(run.model.moe_layers, layers_of(run.model))
    model = run.model.model_copy(update={"moe_layers": layers})
    return run.model_copy(update={"name": "any", "model": model}).model_dump_json()
