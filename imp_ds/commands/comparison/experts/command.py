"""`imp_ds compare-experts OUT`: train and compare variants of the experts of a Uni-MoE."""

import statistics
from pathlib import Path

from imp_ds.commands.comparison.experts.jobs import ExpertsJob, plan_jobs
from imp_ds.commands.comparison.experts.paper import beside
from imp_ds.commands.comparison.experts.variants import CHANGES, is_asked_alone
from imp_ds.commands.comparison.job import AGAIN
from imp_ds.commands.comparison.measure import LESS, MORE, Measure, spreads
from imp_ds.commands.comparison.picture import draw_comparison
from imp_ds.commands.comparison.processes import run_jobs
from imp_ds.commands.comparison.report import PAGE, PICTURE, TABLE, facts, shown, write_page, write_table
from imp_ds.config import RunConfig
from imp_ds.errors import UserError
from imp_ds.evaluation.metric import Metric
from imp_ds.families import family_of
from imp_ds.families.uni_moe.adapters.dense import trained_parameters
from imp_ds.json_files import read_json
from imp_ds.terminal.stage_progress import StageProgress
from imp_ds.train.recording.final_results import read_results
from imp_ds.train.run_folder import RESULTS

MEAN, APART = "answers/mean", "answers/deviation"
_WITHOUT = ("_blind", "_shuffled")  # ends of names of what was asked without the right media
COST = (
    Measure("parameters/trained", "parameters trained", "M", 1e-6, 3, LESS),
    Measure("parameters/active", "parameters active", "M", 1e-6, 3, LESS),
)


def compare_experts(
    out: Path, run: RunConfig, *, variants: list[str], seeds: int, parallel: int, settings: list[str], command: str
) -> None:
    """Train all variants from all seeds, and write table.json, README.md and comparison.png into `out`.

    What is done already is kept: the same call again goes on where another was stopped.

    Args:
        out: a new folder, or one of this same comparison.
        run: of the recipe, whose evaluations say what is compared.
        variants: of `imp_ds.commands.comparison.experts.variants`, and sets of them; empty: all that the recipe can have.
        seeds: how many, from 0. parallel: runs at a time. settings: further changes of every run, "path=value".
        command: the line that makes this folder, for its page.

    Raises UserError for what cannot be compared, before anything is trained, and for a run that fails.
    """
    jobs, shares = plan_jobs(out, run, variants, seeds, settings)
    if not any(record.evaluator == "answers" for record in run.evaluations):
        raise UserError("the recipe asks its model nothing", got="no evaluation with evaluator = answers", fix="add one")
    try:
        for job in jobs:
            job.write()
    except OSError as error:
        raise UserError("the output folder cannot be written", got=f"{out}: {error.strerror}", fix="name another") from None
    log = lambda line: print(line, flush=True)  # noqa: E731
    with StageProgress() as progress:
        run_jobs(jobs, parallel, progress=progress, log=log)
    _write(out, run.name, jobs, shares, facts(command, jobs[0].made.train.steps, seeds))
    log(f"wrote {out / PAGE}, {out / TABLE}, {out / PICTURE}")


def _write(out: Path, name: str, jobs: list[ExpertsJob], shares: dict[str, str], study: dict) -> None:
    measured, known = {}, {}  # numbers by variant, and of each metric what it is
    for job in sorted(jobs, key=lambda job: is_asked_alone(job.variant)):  # eval does not write what its metrics are
        found = _metrics(job, known)
        known |= {metric.name: metric for metric in found}
        measured.setdefault(job.variant, []).append(job_values(job, found))
    answers = [_column(metric) for metric in known.values() if _is_asked(metric)]
    values = {variant: measured[shared] for variant, shared in shares.items()}
    several = [
        Measure(MEAN, "mean of all tasks", "%", 100, 1, MORE), Measure(APART, "deviation between tasks", "%", 100, 1, LESS)
    ]  # fmt: skip
    sections = {"Answers": [*several, *answers], "What it costs": COST}
    found = spreads(values)
    write_table(out, study, values, {"shared_runs": shares}, of="variants")
    write_page(
        out, study, found, sections, _notes(jobs, shares), title="Experts of Uni-MoE, compared", of="variant",
        beside=beside(several, found),
    )  # fmt: skip
    panels = shown([*several, *answers, *COST], found)
    seeds = f"mean and deviation of {study['seeds']} seeds" if study["seeds"] > 1 else "one seed"
    draw_comparison(panels, found, out / PICTURE, title=f"Experts of {name}: {study['steps']} steps, {seeds}")


def _metrics(job: ExpertsJob, known: dict[str, Metric]) -> list[Metric]:
    """What a finished job has scored; of a model that was only asked those of the metrics that are known from a run."""
    if not is_asked_alone(job.variant):
        return read_results(job.folder)
    found = read_json(job.folder / RESULTS, dict, AGAIN)
    return [known[name]._replace(value=value) for name, value in found.items() if name in known]


def job_values(job: ExpertsJob, scores: list[Metric]) -> dict[str, float]:
    """All numbers of a finished job by flat names. Mean and deviation over tasks are of the shares of right answers."""
    values = {metric.name: metric.value for metric in scores}
    right = [metric.value for metric in scores if _is_asked(metric) and metric.unit == "share" and metric.better == "higher"]
    if right:
        values |= {MEAN: statistics.fmean(right), APART: statistics.pstdev(right)}
    cost = family_of(job.made).cost(job.made)
    counted = cost.parameters(cost.sizes())
    trained = 0 if is_asked_alone(job.variant) else trained_parameters(job.made)
    return values | {"parameters/trained": trained, "parameters/active": counted.active + counted.rest}


def _is_asked(metric: Metric) -> bool:
    """Whether it is of answers, and not of those without the right media."""
    return metric.name.startswith("answers/") and not metric.name.endswith(_WITHOUT)


def _column(metric: Metric) -> Measure:
    unit, scale = ("%", 100) if metric.unit == "share" else (metric.unit, 1.0)
    better = {"higher": MORE, "lower": LESS}.get(metric.better, "")
    return Measure(metric.name, " ".join(metric.name.split("/")[1:]), unit, scale, 1, better)


def _notes(jobs: list[ExpertsJob], shares: dict[str, str]) -> list[str]:
    """What has to be known of the numbers."""
    notes = [
        "All runs of a seed have the same data in the same order; they differ in what their variant changes alone: "
        + "; ".join(f"`{name}`: {what}" for name, what in CHANGES.items()) + ".",
        "Answers are greedy, of the split that the recipe's runs score last; the deviation between tasks is that of the shares "
        "of right answers. The paper's numbers are of other data, and a model some thousand times as large: what compares is "
        "which variant is better.",
    ]  # fmt: skip
    if any(is_asked_alone(job.variant) for job in jobs):
        notes.append("Specialists are there before, and are asked once: they have no seeds.")
    notes += [
        f"`{job.variant}` has LoRA of rank {job.made.model.lora.r}."
        for job in jobs if job.seed == 0 and "dense" in job.variant and job.made.model.lora is not None
    ]  # fmt: skip
    if same := [f"`{name}` is `{shared}`" for name, shared in shares.items() if name != shared]:
        notes.append(f"Variants that make the same run were trained once: {', '.join(same)}.")
    return notes
