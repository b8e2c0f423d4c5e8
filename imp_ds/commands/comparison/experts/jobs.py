"""What a comparison of experts consists of: a run for each variant and seed."""

from dataclasses import dataclass
from pathlib import Path

from imp_ds.commands.comparison.experts.variants import default_variants, layers_of, varied
from imp_ds.commands.comparison.job import Job
from imp_ds.config import RunConfig
from imp_ds.moe.placement import placed_layers


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
        path.write_text(self.made.model_dump_json(indent=2) + "\n", encoding="utf-8")


def plan_jobs(
    out: Path, run: RunConfig, variants: list[str], seeds: int, settings: list[str]
) -> tuple[list[ExpertsJob], dict[str, str]]:
    """The jobs of a comparison in the folder `out`: all variants from the first seed, then from the next; and of each variant the
    one whose runs it shares, since they are equal: itself, or one before it.

    Args:
        run: of the recipe. variants: empty: all that it can have.
        seeds: how many; they are 0, 1, ...: of the weights, the order of the data and all that is random.
        settings: further changes of each run, "path=value".

    Raises UserError for an unknown variant, one that the recipe cannot have, and a folder that holds another comparison.
    """
    run = run.override(settings)
    runs = {name: varied(run, name) for name in dict.fromkeys(variants or default_variants(run))}
    shares, jobs = _shares(runs), []
    for seed in range(seeds):
        seeded = [f"data.seed={seed}", f"train.seed={seed}"]
        for name in dict.fromkeys(shares.values()):
            folder = out / "runs" / f"{name}_{seed}"
            file = out / "recipes" / f"{name}_{seed}.json"
            jobs.append(ExpertsJob(name, seed, folder, str(file), (), runs[name].override(seeded)))
    for job in jobs:
        job.check()
    return jobs, shares


def _shares(runs: dict[str, RunConfig]) -> dict[str, str]:
    """{variant: the first one whose run is equal but for its name}."""
    first = {}
    return {name: first.setdefault(_spelled_out(run), name) for name, run in runs.items()}


def _spelled_out(run: RunConfig) -> str:
    """All that a run is, without its name; layers by their numbers."""
    layers = placed_layers(run.model.moe_layers, layers_of(run.model))
    model = run.model.model_copy(update={"moe_layers": layers})
    return run.model_copy(update={"name": "any", "model": model}).model_dump_json()
