"""`imp_ds predict MODEL FILE ...`: the classes that an exported model finds in images, videos and audio, by name.

Files are decoded and preprocessed as in the evaluations of the model's run, by the view of the task.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from imp_ds.commands.exported_model import load_model, read_run
from imp_ds.config import RunConfig
from imp_ds.data.decoding import decode_windows
from imp_ds.data.loading.collation import Collator
from imp_ds.errors import UserError
from imp_ds.families.train_module import TrainModule, likeliest
from imp_ds.modalities.media import BadSample, Media
from imp_ds.modalities.modality import TEXT, Wanted, get_modality
from imp_ds.modalities.views import Views
from imp_ds.tasks import Task
from imp_ds.terminal.printable import printable
from imp_ds.written_files import write_result

BATCH = 32


def predict(
    model_path: Path, paths: list[Path], *, task: str | None = None, top: int = 5, output: Path | None = None
) -> dict[str, dict[str, float]]:
    """{file: {class name: probability}}, the `top` likeliest classes of each file, the likeliest first; also as a table.

    Args:
        model_path: a folder that `export` wrote.
        paths: files, and folders of files, which are taken with all that lies below them; hidden files are passed over.
        task: whose classes; None: the only one of the model that distinguishes classes.
        output: a file of JSON lines {"file", "predictions"}, or {"file", "error"} for a file that cannot be decoded.

    A long recording has the mean of its windows' probabilities. Raises UserError for a folder that is no model, a task that it
    does not have or that reads more than one medium, and when no file is there or none can be decoded.
    """
    run, (model, processor) = read_run(model_path), load_model(model_path)
    model.eval()
    task, modality = _reads(model, task)
    views = Views(**{modality: getattr(run.task(task).views, modality)})
    files = list(files_below(paths))
    if not files:
        got = ", ".join(map(str, paths)) or "no path"
        raise UserError("there is no file to predict", got=got, allowed="files or folders of files")
    wanted = Wanted(settings=run.data.decoding)
    found, errors = _predict_files(model, processor, run.task(task), views, wanted, files, top)
    if not found:
        raise _nothing_decoded(model, run, task, views, wanted, errors)
    if output is not None:
        results = {file: {"predictions": of} for file, of in found.items()} | {file: {"error": of} for file, of in errors.items()}
        lines = [{"file": file, **results[file]} for file in dict.fromkeys(files)]
        write_result(output, "".join(json.dumps(line) + "\n" for line in lines))
    _show(found, errors, task, output)
    return found


def _reads(model: TrainModule, task: str | None) -> tuple[str, str]:
    """The task that is meant, and the one modality that it reads."""
    task, objective = model.answering(task)
    if len(objective.inputs) != 1 or objective.inputs[0] == TEXT:
        raise UserError(
            f"the task {task} does not read one image, video or recording", got=" and ".join(objective.inputs),
            allowed="one modality other than text",
            fix=f"in Python: {type(model).__name__}.from_pretrained(MODEL).answer({task!r}, ...)",
        )  # fmt: skip
    return task, objective.inputs[0]


def files_below(paths: list[Path]) -> Iterator[str]:
    """The files, and those below the folders, in sorted order, without hidden ones."""
    for path in paths:
        if path.is_dir():
            for folder, folders, names in os.walk(path):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                yield from (os.path.join(folder, name) for name in sorted(names) if not name.startswith("."))
        else:
            yield str(path)


def _predict_files(model, processor, task: Task, views: Views, wanted: Wanted, files: list[str], top: int) -> tuple[dict, dict]:
    """The predictions of the files that can be decoded, and what is wrong with the others."""
    found, errors, collator = {}, {}, Collator(processor)
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("files", total=len(files))
        for start in range(0, len(files), BATCH):
            entries = []
            for file in files[start : start + BATCH]:
                try:
                    entries += [(file, window) for window in decode_windows(_sample(file, views), views, None, wanted)]
                except BadSample as error:
                    errors[file] = str(error)
            for first in range(0, len(entries), BATCH):
                _add(found, model, collator, task, views, entries[first : first + BATCH])
            progress.advance(bar, min(BATCH, len(files) - start))
    names = model.answer_names(task.name)
    return {file: likeliest(names, torch.stack(windows).mean(0), top) for file, windows in found.items()}, errors


def _nothing_decoded(
    model: TrainModule, run: RunConfig, task: str, views: Views, wanted: Wanted, errors: dict[str, str]
) -> UserError:  # fmt: skip
    """What is wrong with the first file, what the task reads, and which other tasks of the model can read that file."""
    file, error = next(iter(errors.items()))
    fitting = []
    for other in run.tasks:
        try:
            seen = Views(**{modality: getattr(other.views, modality) for modality in [_reads(model, other.name)[1]]})
            if other.name != task and next(iter(decode_windows(_sample(file, seen), seen, None, wanted)), None) is not None:
                fitting.append(other.name)
        except (UserError, BadSample):
            continue
    fix = f"--task {fitting[0]}, which can read it" if fitting else None
    reads = " and ".join(f"{name} ({get_modality(name).what})" for name in views.names())
    return UserError("no file can be decoded", got=f"{file}: {error}", allowed=f"the task {task} reads {reads}", fix=fix)


def _sample(file: str, views: Views) -> dict:
    return {name: Media(name=file, path=Path(file)) for name in views.names()}


def _add(found: dict[str, list[torch.Tensor]], model, collator: Collator, task: Task, views: Views, entries: list) -> None:
    """The probabilities [K] of each window, under its file's name."""
    batch = collator(task.name, views, [window for _, window in entries]).to(model.device)
    answers_BK = model.answer(task.name, **batch.inputs[views.names()[0]]).float().cpu()
    for (file, _), answers_K in zip(entries, answers_BK):
        found.setdefault(file, []).append(answers_K)


def _show(found: dict, errors: dict[str, str], task: str, output: Path | None) -> None:
    console = Console()
    table = Table(title=f"predictions of the task {task}")
    table.add_column("file", overflow="fold")
    table.add_column("classes")
    for file, predictions in found.items():
        table.add_row(printable(file), ", ".join(f"{name} {100 * p:.1f} %" for name, p in predictions.items()))
    for file, error in errors.items():
        table.add_row(printable(file), f"left out: {printable(error)}")
    console.print(table, markup=False)
    if output is not None:
        print(f"wrote {output}: {len(found)} files predicted, {len(errors)} left out")
