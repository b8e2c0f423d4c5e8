"""A run that was trained, as its folder holds it: configuration, processor, and the weights of one of its checkpoints."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import ProcessorMixin

from imp_ds.config import FILE_NAME, RunConfig
from imp_ds.errors import UserError
from imp_ds.families import family_of
from imp_ds.families.train_module import TrainModule
from imp_ds.train import checkpoint
from imp_ds.train.processor import load_processor
from imp_ds.train.run_folder import load_run


@dataclass(frozen=True)
class TrainedRun:
    """`reader` is that of a checkpoint that has been verified; `reader.state["step"]` gives it."""

    run: RunConfig
    processor: ProcessorMixin
    reader: checkpoint.Reader

    def load_model(self, report: Callable[[str, int, int], None] | None = None, averaged: bool = False) -> TrainModule:
        """The whole model with all of its experts, on the CPU, in float32 and ready to train; arguments and errors as of a
        checkpoint's `load_weights`."""
        family = family_of(self.run)
        config = family.config(self.run, self.processor)
        for name in family.recorded:
            setattr(config, name, self.reader.state["config"].get(name))
        model = family.empty(config)
        self.reader.load_weights(model, report, averaged)
        return model


def open_run(run_dir: Path, step: int | None = None) -> TrainedRun:
    """The run in an output folder, at the checkpoint of a step; None: the newest complete one.

    Raises UserError when there is no such run or checkpoint, it is damaged, or the weights that it started from and did not
    train are no longer there.
    """
    if not checkpoint.steps(run_dir) and not (run_dir / FILE_NAME).is_file():
        raise UserError(
            "this is not the folder of a run", got=run_dir,
            allowed="the --output_dir of imp_ds train, for example runs/digits",
        )  # fmt: skip
    run = load_run(run_dir)
    reader = checkpoint.Reader(_find_checkpoint(run_dir, step), run.train.init_from)
    reader.check_base()
    return TrainedRun(run, load_processor(run, run_dir, reader.state), reader)


def checkpoint_step(run_dir: Path, which: str) -> int | None:
    """The step of the checkpoint that is asked for: "latest" (None: the newest complete one), "best" (`train.best`), or a number.

    Raises UserError for another word, and a run that keeps no best checkpoint, or has lost it.
    """
    if which == "latest":
        return None
    if which.isdecimal():
        return int(which)
    if which != "best":
        raise UserError("--checkpoint is not understood", got=repr(which), allowed="latest, best or the number of a step")
    newest = checkpoint.newest(run_dir)
    best = None if newest is None else checkpoint.Reader(newest).state.get("best")
    if best is None or best["step"] is None:
        fix = "--checkpoint latest; or train it with --set train.best=validation/TASK/loss, or another score of results.json"
        raise UserError("the run has no best checkpoint", got=run_dir, fix=fix)
    if best["step"] not in checkpoint.steps(run_dir):
        got = f"that of step {best['step']}, with {best['metric']} = {best['value']:.6g}"
        raise UserError("the best checkpoint of the run is no longer there", got=got, fix="--checkpoint latest")
    return best["step"]


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
        raise UserError("the run has no complete checkpoint", got=run_dir, fix="train it longer, or set train.save_every")
    return folder
