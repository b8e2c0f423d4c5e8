"""What a finished run leaves beside its weights: its scores and what they took, as a file, and what is drawn of them."""

from pathlib import Path

import torch
import torch.distributed as dist

from imp_ds.errors import UserError
from imp_ds.evaluation import Evaluator, Metric, by_name
from imp_ds.evaluation.metric import read_metric
from imp_ds.json_files import parse_json, read_json
from imp_ds.parallel.groups import world_size
from imp_ds.train.recording.monitor import HISTORY, Monitor, memory_gib
from imp_ds.train.run_folder import RESULTS, RESULTS_UNITS
from imp_ds.written_files import write_json

PROJECTED_ROWS = 500


def peak_rank_gib(device: torch.device) -> float:
    """The most memory that a rank has held; every rank calls it, and gets the largest."""
    peak = torch.tensor([memory_gib()], device=device)
    if world_size() > 1:
        dist.all_reduce(peak, op=dist.ReduceOp.MAX)
    return round(float(peak), 2)


def write_results(output_dir: Path, results: list[Metric], evaluators: list[Evaluator], monitor: Monitor, step: int) -> None:
    """The files, and in TensorBoard the vectors of each evaluation and the table of all scores."""
    write_json(output_dir / RESULTS_UNITS, {metric.name: metric.facts() for metric in results})
    write_json(output_dir / RESULTS, by_name(results))
    for evaluator in evaluators:
        if (found := evaluator.projection(PROJECTED_ROWS)) is not None:
            monitor.log_projector(evaluator.record.name, *found, step=step)
    monitor.finish(by_name(results))


def read_results(run_dir: Path) -> list[Metric]:
    """What `write_results` has written of a run. Raises UserError for damaged files."""
    fix = f"delete {RESULTS}: the model is exported without scores"
    found, facts = (read_json(run_dir / name, dict, fix) for name in (RESULTS, RESULTS_UNITS))
    try:
        return [read_metric(name, value, facts[name]) for name, value in found.items()]
    except (TypeError, ValueError, LookupError) as error:
        got, allowed = f"{type(error).__name__}: {error}", f"each name of {RESULTS} in {RESULTS_UNITS}"
        raise UserError("the results of a run are damaged", got=got, allowed=allowed, fix=fix) from None


def scored_split(run_dir: Path) -> str:
    """The split that the scores of a finished run are of: that of its last evaluation."""
    found, history = "validation", run_dir / HISTORY
    for line in history.read_text(encoding="utf-8").splitlines() if history.is_file() else ():
        entry = parse_json(line, HISTORY, dict)
        found = entry["split"] if entry.get("kind") == "evaluation" else found
    return found
