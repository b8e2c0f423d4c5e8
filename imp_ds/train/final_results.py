"""What a finished run leaves beside its weights: its scores and what they took, as a file, and what is drawn of them."""

from pathlib import Path

import torch
import torch.distributed as dist

from imp_ds.evaluation import Evaluator
from imp_ds.parallel.groups import world_size
from imp_ds.train.monitor import Monitor, memory_gib
from imp_ds.train.run_folder import RESULTS
from imp_ds.written_files import write_json

PROJECTED_ROWS = 500


def peak_rank_gib(device: torch.device) -> float:
    """The most memory that a rank has held; every rank calls it, and gets the largest."""
    peak = torch.tensor([memory_gib()], device=device)
    if world_size() > 1:
        dist.all_reduce(peak, op=dist.ReduceOp.MAX)
    return round(float(peak), 2)


def write_results(output_dir: Path, results: dict[str, float], evaluators: list[Evaluator], monitor: Monitor, step: int) -> None:
    """The file, and in TensorBoard the vectors of each evaluation and the table of all scores."""
    write_json(output_dir / RESULTS, results)
    for evaluator in (found for found in evaluators if found.vectors_NC is not None):
        rows = min(PROJECTED_ROWS, len(evaluator.vectors_NC))
        labels, pictures = evaluator.label_names(), evaluator.thumbnails(rows)
        monitor.log_projector(evaluator.record.name, evaluator.vectors_NC[:rows], labels and labels[:rows], pictures, step=step)
    monitor.finish(results)
