"""`python -m imp_ds export RUN OUT`: a folder that from_pretrained loads, out of a run's checkpoint, in one process."""

import json
import shutil
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from imp_ds.config import FILE_NAME, RunConfig
from imp_ds.errors import UserError
from imp_ds.models.imp.processing_imp import ImpProcessor
from imp_ds.pretraining import ImpForPreTraining
from imp_ds.train import checkpoint, model_card, processor
from imp_ds.train.staged_folder import staged_folder
from imp_ds.train.trainer import RESULTS


def export(run_dir: Path, out: Path, step: int | None = None) -> Path:
    """Write model, processor, run configuration, scores and model card of a run's checkpoint to the folder `out`.

    Args:
        run_dir: a run's output folder.
        out: a new or empty folder; written beside itself first, so it is whole or not there.
        step: the checkpoint of that step; None takes the newest whole one.

    Raises UserError when there is no such run or checkpoint, it is damaged, or `out` cannot be written.
    """
    run_dir, out = Path(run_dir), Path(out)
    run = _read_run(run_dir)
    with staged_folder(out, "export") as staging:
        folder = _find_checkpoint(run_dir, step)
        reader = checkpoint.Reader(folder)
        pieces = ImpProcessor.from_pretrained(run_dir / processor.FOLDER, local_files_only=True)
        with torch.device("meta"):
            model = ImpForPreTraining(run.model.to_config(len(pieces.tokenizer), run.tasks))
        model.to_empty(device="cpu")
        reader.load_weights(model)
        _write(staging, run_dir, run, reader.state, model.eval(), pieces)
    return out


def _read_run(run_dir: Path) -> RunConfig:
    if not (run_dir / FILE_NAME).is_file() or not (run_dir / processor.FOLDER).is_dir():
        raise UserError(
            "this is not the folder of a run", got=run_dir,
            allowed="the --output_dir of python -m imp_ds train, for example runs/digits",
        )  # fmt: skip
    return RunConfig.load(run_dir)


def _find_checkpoint(run_dir: Path, step: int | None) -> Path:
    steps = checkpoint.steps(run_dir)
    if step is not None:
        if step not in steps:
            raise UserError("the run has no checkpoint of this step", got=step, allowed=", ".join(map(str, steps)) or "none yet")
        folder = run_dir / checkpoint.FOLDER / checkpoint.folder_name(step)
        checkpoint.verify(folder)
        return folder
    folder = checkpoint.newest(run_dir)
    if folder is None:
        raise UserError("the run has no whole checkpoint", got=run_dir, fix="train it longer, or set train.save_every")
    return folder


def _write(folder: Path, run_dir: Path, run: RunConfig, state: dict, model: ImpForPreTraining, pieces: ImpProcessor) -> None:
    transformers_logging.disable_progress_bar()
    model.save_pretrained(folder)
    pieces.save_pretrained(folder)
    run.save(folder)
    results, final = {}, run_dir / RESULTS
    # the scores are those of the last step: they say nothing of an earlier checkpoint
    if final.is_file() and state["step"] == run.train.steps:
        results = {name: value for name, value in json.loads(final.read_text()).items() if not name.startswith("train/")}
        if (run_dir / model_card.PICTURE).is_file():
            shutil.copy(run_dir / model_card.PICTURE, folder / model_card.PICTURE)
    parameters = sum(p.numel() for p in model.parameters())
    model_card.write(
        folder, run, model.config, results, state["versions"], steps=state["step"], world_size=state["world_size"],
        parameters=parameters, seconds=state["seconds"],
    )  # fmt: skip
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes for the owner alone
