"""The command `data check`: what a recipe's sources hold, how fast they are read, and how many workers a plan needs."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from transformers import ProcessorMixin

from imp_ds.commands.check.copies import other_splits, overlaps
from imp_ds.commands.check.report import CheckReport, SourceReport
from imp_ds.commands.check.request import CheckRequest, available_cores
from imp_ds.commands.check.table import show
from imp_ds.config import RunConfig
from imp_ds.data.corpus import open_corpus
from imp_ds.data.inspect.check import look
from imp_ds.data.loading.collation import Collator
from imp_ds.data.loading.worker_speed import worker_speed
from imp_ds.data.reader import Reader
from imp_ds.errors import UserError
from imp_ds.evaluation.missing_splits import check_evaluations
from imp_ds.families import family_of
from imp_ds.planning.needed_workers import needs
from imp_ds.terminal.stage_progress import StageProgress
from imp_ds.train.processor import FOLDER, load_processor
from imp_ds.written_files import write_result

_WIDTH = 140  # of a table that goes to a file


def check(request: CheckRequest, output: Path | None = None) -> bool:
    """Look at a recipe's corpus, print what was found, and write the same as JSON to the file `output`; whether a run would bear
    its broken samples.

    Raises UserError for a source that cannot be opened.
    """
    with StageProgress() as progress:
        report = examine(request, progress)
    show(report, Console() if sys.stdout.isatty() else Console(width=_WIDTH))
    if output is not None:
        write_result(output, json.dumps(report.record(), indent=1) + "\n")
        print(f"wrote {output}: what is in the tables, as JSON", flush=True)
    return not report.broken()


def examine(request: CheckRequest, progress: Callable) -> CheckReport:
    """What `check` finds. progress: called with (stage, done, total)."""
    run, trained, processes = request.run, request.trained, request.number_of_processes
    check_evaluations(run, "validation")
    readers = open_corpus(run, request.split, progress)
    subsets = {id(reader): request.rows(reader) for of_task in readers.values() for reader in of_task}
    few = {name: [subsets[id(reader)] for reader in of_task] for name, of_task in readers.items()}
    processor = processor_of(run, few, trained)
    sources = []
    for number, subset in subsets.items():
        tasks = [task for task in run.tasks if any(id(reader) == number for reader in readers[task.name])]
        count = Collator(processor).conversation_tokens
        found = look(subset, tasks, processor.tokenizer, processes, progress, run.data.decoding, count)
        sources.append(SourceReport(subset, [task.name for task in tasks], found))
    speeds, views = [], [(task, view) for task in run.tasks for view in range(len(task.all_views))]
    for task, view in views:
        settings = dict(seed=run.data.seed, window=run.data.window)
        speeds.append(worker_speed(task, readers[task.name], Collator(processor), view, **settings))
        progress("timing a worker", len(speeds), len(views))
    own_tokens = (
        trained is not None or run.data.tokenizer is not None or all(len(s.rows) == len(s.reader) for s in subsets.values())
    )
    common = overlaps([(source.subset, source.found) for source in sources] + other_splits(request, progress))
    return CheckReport(
        run, request.split, sources, needs(request.plan, speeds), request.plan, available_cores(), own_tokens, common
    )


def processor_of(run: RunConfig, readers: dict[str, list[Reader]], trained: Path | None) -> ProcessorMixin:
    """The processor of a trained run, or one made of these readers. Raises UserError for a folder that has none."""
    if trained is None:
        return family_of(run).processor(run, readers)
    if not (trained / FOLDER / "processor_config.json").is_file():
        raise UserError("the run has no processor", got=trained, allowed=f"an output folder of train, with {FOLDER}/ in it")
    return load_processor(run, trained)
