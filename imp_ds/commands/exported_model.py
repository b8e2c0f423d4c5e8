"""An exported model as its folder holds it: run configuration, model and processor."""

import os
from pathlib import Path

import torch
from transformers import ProcessorMixin

from imp_ds.config import FILE_NAME, RunConfig
from imp_ds.errors import UserError
from imp_ds.families import family_of
from imp_ds.families.train_module import TrainModule

CONFIG = "config.json"
_DAYS_S = 7 * 86400.0  # that ranks wait for one that works alone


def load_model(folder: Path) -> tuple[TrainModule, ProcessorMixin]:
    """Model, with the tasks' heads, and processor of an exported folder, on the GPU if there is one. Raises UserError when they
    do not load."""
    model, processor = family_of(read_run(folder)).load_export(folder)
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), processor


def read_run(folder: Path) -> RunConfig:
    """The configuration of the run that an exported model is of. Raises UserError for another folder."""
    missing = [name for name in (CONFIG, FILE_NAME) if not (folder / name).is_file()]
    if missing:
        raise UserError(
            "this is not the folder of an exported model", got=f"{folder} without {', '.join(missing)}",
            fix="imp_ds export RUN OUT writes one; runs/NAME/model is one",
        )  # fmt: skip
    return RunConfig.load(folder / FILE_NAME)


def start_ranks() -> None:
    """Join the other ranks, where a launcher has started several."""
    if int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", 1))) > 1:
        from imp_ds.train.engine.engine import start_process_group

        start_process_group(_DAYS_S)
