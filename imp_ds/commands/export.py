"""`imp_ds export RUN OUT`: a folder that from_pretrained loads, out of a run's checkpoint, in one process."""

import shutil
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils import logging as transformers_logging

from imp_ds.commands.exported_model import read_run
from imp_ds.commands.sharing.carried_code import write_code
from imp_ds.commands.sharing.sentence_files import write_sentence_files
from imp_ds.config import RunConfig
from imp_ds.evaluation.metric import scores_of
from imp_ds.evaluation.picture import PICTURE
from imp_ds.families import family_of
from imp_ds.families.card import write_card
from imp_ds.train.recording.final_results import read_results, scored_split
from imp_ds.train.run_folder import RESULTS
from imp_ds.train.staged_folder import staged_folder
from imp_ds.train.trained_run import open_run


def export(
    run_dir: Path, out: Path, step: int | None = None, merge_tasks: list[str] | None = None,
    report: Callable[[str, int, int], None] | None = None, stock: bool = False, averaged: bool = False,
) -> Path:  # fmt: skip
    """Write model, processor, run configuration, scores and model card of a run's checkpoint to the folder `out`.

    Args:
        run_dir: a run's output folder.
        out: a new or empty folder; written beside itself first, so it is complete or absent.
        step: the checkpoint of that step; None takes the newest complete one.
        merge_tasks: write the dense model of these tasks' conditions (`ModelFamily.merge`; []: of all tasks); None: the
            model as it is.
        report: called with (stage, done, of how many) while the weights are read.
        stock: write classes of transformers that load without this package (`ModelFamily.save_stock`).
        averaged: write the average of the weights that `train.ema` keeps, with its own scores.

    Raises UserError when there is no such run or checkpoint, it is damaged or cannot be merged, or `out` cannot be written.
    """
    run_dir, out = Path(run_dir), Path(out)
    with staged_folder(out, "export") as staging:
        trained = open_run(run_dir, step)
        family = family_of(trained.run)
        model = family.finished(trained.load_model(report, averaged).eval())
        if merge_tasks is not None:
            model = family.merge(model, merge_tasks or None)
        _write(staging, run_dir, trained.run, trained.reader.state, model, trained.processor, stock, averaged)
    return out


def export_adapter(
    run_dir: Path, out: Path, step: int | None = None, report: Callable[[str, int, int], None] | None = None
) -> Path:
    """Write what a run has trained beside its base, as an adapter that PEFT loads, with the run's configuration, to the folder
    `out`. Arguments and errors as of `export`."""
    out = Path(out)
    with staged_folder(out, "export") as staging:
        trained = open_run(Path(run_dir), step)
        transformers_logging.disable_progress_bar()
        model = trained.load_model(report).eval()
        family_of(trained.run).write_adapter(trained.run, model, trained.processor, staging, out)
        trained.run.save(staging)
        _make_readable(staging)
    return out


def examples_of(folder: Path) -> str:
    """How the commands that take the exported model are called."""
    rest = {"predict": " FILE", "chat": ' "QUESTION"'}
    called = [f"imp_ds {name} {folder}{rest.get(name, '')}" for name in family_of(read_run(folder)).commands]
    return " and ".join(filter(None, [", ".join(called[:-1]), called[-1]]))


def _write(
    folder: Path, run_dir: Path, run: RunConfig, state: dict, model: PreTrainedModel, processor: ProcessorMixin, stock: bool,
    averaged: bool,
) -> None:  # fmt: skip
    transformers_logging.disable_progress_bar()
    family, card = family_of(run), None
    if stock:
        card = family.save_stock(model, processor, folder)
    else:
        model.config.trained_steps = state["step"]
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        write_code(folder, family.auto_classes())
        write_sentence_files(folder, family.sentence_methods(model.config))
        run.save(folder)
    results, split, final = [], "test", run_dir / RESULTS
    # the scores are those of the last step: they say nothing of an earlier checkpoint
    if final.is_file() and state["step"] == run.train.steps:
        results, split = scores_of(read_results(run_dir), averaged), scored_split(run_dir)
        if (run_dir / PICTURE).is_file() and not averaged:  # it shows the scores of the weights
            shutil.copy(run_dir / PICTURE, folder / PICTURE)
    parameters = sum(p.numel() for p in model.parameters())
    card = card or family.card(run, model.config, results, ".")
    write_card(
        folder, run, card, results, state["versions"],
        experts=family.experts(model.config), steps=state["step"], world_size=state["world_size"], parameters=parameters,
        seconds=state["seconds"], split=split,
    )  # fmt: skip
    _make_readable(folder)


def _make_readable(folder: Path) -> None:
    """For all; safetensors writes for the owner alone."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o644)
