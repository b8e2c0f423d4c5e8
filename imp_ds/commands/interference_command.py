"""`imp_ds interference RUN`: how the tasks of a run interfere at one of its checkpoints, in one process."""

import json
import math
import sys
from pathlib import Path

import torch
from rich.console import Console

from imp_ds.data.corpus import open_corpus
from imp_ds.errors import UserError
from imp_ds.evaluation.interference import Interference
from imp_ds.evaluation.interference_picture import draw_interference, interference_tables
from imp_ds.terminal.stage_progress import StageProgress
from imp_ds.train.interference import BATCH_SIZE, SAMPLES, InterferenceProbe
from imp_ds.train.trained_run import open_run
from imp_ds.written_files import write_result


def interference(
    run_dir: Path, *, step: int | None = None, tasks: list[str] = (), weights: list[str] = (), samples: int = SAMPLES,
    batch_size: int = BATCH_SIZE, data: Path | None = None, output: Path | None = None,
) -> dict[str, Interference]:  # fmt: skip
    """Measure it on the training split, print a table for each weight, and write JSON and, beside it, a heat map.

    Args:
        run_dir: a run's output folder.
        step: the checkpoint of that step; None takes the newest complete one.
        tasks: names of two or more of the run's; empty: all.
        weights: names of parameters, with * for anything (`imp_ds.train.interference.chosen_weights`).
        samples: gradients of each task; published: 100.
        batch_size: examples of each gradient.
        data: the corpus; None takes the one that the run was trained on.
        output: the JSON file, whose name with .png is the picture's; None: interference.json in the run's folder.

    Raises UserError when there is no such run, checkpoint, task or weight, the corpus cannot be read, or the files cannot be
    written.
    """
    trained = open_run(Path(run_dir), step)
    output = _check_output(Path(run_dir) / "interference.json" if output is None else Path(output))
    run = trained.run.model_copy(deep=True)
    if data is not None:
        run.data.root = str(data)
    run.tasks = [run.task(name) for name in tasks] or run.tasks
    model = trained.load_model().to("cuda" if torch.cuda.is_available() else "cpu")
    with StageProgress() as report:
        readers = open_corpus(run, progress=report)
        probe = InterferenceProbe(run, model, readers, trained.processor, weights=weights, samples=samples, batch_size=batch_size)
        print(f"gradients of {len(run.tasks)} tasks in {len(probe.names)} weights: {probe.held_mib} MiB", flush=True)
        found = probe.measure(report)
    # a file has no width; tables are not cut there
    console = Console() if sys.stdout.isatty() else Console(width=140)
    for table in interference_tables(found):
        console.print(table)
    _write(found, output, run=run.name, step=trained.reader.state["step"], samples=samples, batch_size=batch_size)
    return found


def _write(found: dict[str, Interference], output: Path, **facts) -> None:
    write_result(output, json.dumps(facts | {"weights": as_json(found)}, indent=2) + "\n")
    picture = output.with_suffix(".png")
    draw_interference(found, picture, title=f"{facts['run']}, step {facts['step']}: interference of tasks")
    print(f"wrote {output} and {picture}", flush=True)


def as_json(found: dict[str, Interference]) -> dict:
    """What JSON can hold of it, by the weight's name; null for what is not a number."""
    return {
        name: {
            "tasks": list(measured.tasks),
            "matrix": [[value if math.isfinite(value) else None for value in row] for row in measured.matrix_KK.tolist()],
            "averse": measured.averse_K.tolist(),
        }
        for name, measured in found.items()
    }


def _check_output(path: Path) -> Path:
    """Before the work, not after it."""
    if path.suffix != ".json" or path.is_dir() or not path.parent.is_dir():
        raise UserError("the results cannot be written there", got=path, allowed="a .json file in a folder that exists")
    return path
