"""`imp_ds compare-routers OUT`: train, time and compare dense, token, context, modality, task and attribute routers."""

from collections.abc import Callable
from pathlib import Path

from imp_ds.commands.comparison.job import AGAIN
from imp_ds.commands.comparison.jobs import WEIGHTS, RouterJob, plan_jobs
from imp_ds.commands.comparison.measure import spreads
from imp_ds.commands.comparison.measures import SECTIONS, job_values
from imp_ds.commands.comparison.picture import draw_comparison
from imp_ds.commands.comparison.processes import run_jobs
from imp_ds.commands.comparison.report import PAGE, PICTURE, TABLE, facts, shown, write_page, write_table
from imp_ds.commands.comparison.timing import time_routers, timing_process
from imp_ds.data.digits import verify
from imp_ds.errors import UserError
from imp_ds.json_files import read_json
from imp_ds.terminal.stage_progress import StageProgress
from imp_ds.written_files import write_json


def compare_routers(
    out: Path, *, data: Path, routers: list[str], seeds: int, steps: int | None, parallel: int, samples: int,
    rounds: int, settings: list[str] = (),
) -> None:  # fmt: skip
    """Train all routers from all seeds, time them, and write table.json, README.md and comparison.png into `out`.

    What is done already is kept: the same call again goes on where another was stopped.

    Args:
        out: a new folder, or one of this same comparison.
        data: the digits corpus.
        routers: of `imp_ds.recipes.routers.ROUTERS`; empty: all.
        seeds: how many, from 0.
        steps: of each run; None: the recipe's.
        parallel: runs at a time; the timing comes after all of them, alone.
        samples: gradients of each task of which the interference is measured.
        rounds: timed calls of each step and inference.
        settings: additional changes of every run, "path=value".

    Raises UserError for what cannot be compared, before anything is trained, and for a run that fails.
    """
    jobs = plan_jobs(out, routers, seeds, data=data, steps=steps, samples=samples, settings=list(settings))
    verify(data)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError("the output folder cannot be written", got=f"{out}: {error.strerror}", fix="name another") from None
    log = lambda line: print(line, flush=True)  # noqa: E731
    with StageProgress() as progress:
        run_jobs(jobs, parallel, progress=progress, log=log)
        times = _times(out, jobs, rounds, progress)
    command = _command_line(out, data, routers, seeds, steps, parallel, samples, rounds, settings)
    _write(out, jobs, times, facts(command, jobs[0].run().train.steps, seeds, interference_samples=samples), rounds)
    log(f"wrote {out / PAGE}, {out / TABLE}, {out / PICTURE}")


def _times(out: Path, jobs: list[RouterJob], rounds: int, progress: Callable) -> dict[int, dict[str, dict]]:
    """{seed: what `time_routers` finds}: as it was written, or measured now, all routers of a seed together."""
    times, open_seeds = {}, []
    for seed in sorted({job.seed for job in jobs}):
        path, routers = _times_file(out, seed), {job.variant for job in jobs if job.seed == seed}
        times[seed] = read_json(path, dict, AGAIN) if path.is_file() else {}
        open_seeds += [] if times[seed].keys() >= routers else [seed]
    if not open_seeds:
        return times
    with timing_process() as device:
        for seed in open_seeds:
            of_seed = [job for job in jobs if job.seed == seed]
            times[seed] = time_routers(of_seed, out / "models", device, rounds=rounds, progress=progress)
            path = _times_file(out, seed)
            path.parent.mkdir(exist_ok=True)
            write_json(path, times[seed])
    return times


def _times_file(out: Path, seed: int) -> Path:
    return out / "timing" / f"seed_{seed}.json"


def _write(out: Path, jobs: list[RouterJob], times: dict[int, dict], study: dict, rounds: int) -> None:
    sparse = next((job.run() for job in jobs if job.run().model.num_experts), None)
    conditional = sparse.model.to_config(sparse.data.vocab_size, sparse.tasks).moe_layer_indices if sparse else []
    values = {}
    for job in jobs:
        values.setdefault(job.variant, []).append(job_values(job, times[job.seed][job.variant], conditional))
    details = {"layers_with_experts": conditional, "timing": times}
    write_table(out, study, values, details, of="routers")
    found = spreads(values)
    write_page(
        out, study, found, SECTIONS, _notes(study, times, conditional, rounds), title="Routers of experts, compared", of="router"
    )
    panels = [measure for measures in SECTIONS.values() for measure in shown(measures, found)]
    seeds = f"mean and deviation of {study['seeds']} seeds" if study["seeds"] > 1 else "one seed"
    title = f"Routers of experts on the digits corpus: {study['steps']} steps, {seeds}"
    draw_comparison(panels, found, out / PICTURE, title=title)


def _notes(study: dict, times: dict[int, dict], conditional: list[int], rounds: int) -> list[str]:
    """What has to be known of the numbers."""
    merged = [one["merged_difference"] for of_seed in times.values() for one in of_seed.values()]
    notes = [
        "All runs of a seed have the same data in the same order, and the same initial weights where they have the same weights; "
        "they differ in the gate alone (`imp_ds/recipes/routers.py`).",
        f"A training step is the mean over the tasks, by their shares, of the median of {rounds} steps of a batch: forward, "
        "backward and update, all routers in turns in one process of one thread, after training. Inference is the encoding of a "
        "batch without gradients, the mean over the tasks, of the exported model: merged for modality, task and attribute.",
        "Parameters are trained, served (as exported: in a merged model a copy of the conditional linear layers for each "
        "condition that the tasks have takes the place of the experts), and active (what one token meets).",
        "Interference is the mean between different tasks of the published measure, from "
        f"{study['interference_samples']} gradients of each task after a third of training, in the last linear layer of the "
        f"feed-forward ({WEIGHTS}): 1 is what steps of a task's own do, below 0 they harm. Layers with experts are "
        f"{', '.join(map(str, conditional)) or 'none'}, counted from 0.",
        "Scores are those of the test split: handwriting never seen, voices never heard. Never trained are captions of videos, "
        "generated as those of images are, and images that a voice finds by its vector, where both were named by texts alone: "
        "right is any image of the spoken digit, about a tenth of them.",
    ]  # fmt: skip
    if found := [difference for difference in merged if difference is not None]:
        notes.append(f"Merged models answer as those with experts do, to {max(found):.1e} of the largest number.")
    return notes


def _command_line(out, data, routers, seeds, steps, parallel, samples, rounds, settings) -> str:
    words = ["imp_ds compare-routers", out, "--data", data, "--seeds", seeds, "--parallel", parallel]
    words += [] if steps is None else ["--steps", steps]
    words += ["--samples", samples, "--rounds", rounds]
    words += [word for router in routers for word in ("--router", router)]
    words += [word for setting in settings for word in ("--set", setting)]
    return " ".join(map(str, words))
