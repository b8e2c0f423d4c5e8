"""Commands that train: train and tune.

Heavy modules are imported inside the commands, so that help is there at once.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from imp_ds.cli.options import RESUME, AllowChanges, DeepSpeedConfig, LocalRank, Recipe, Set, StageName, take_local_rank
from imp_ds.errors import UserError
from imp_ds.terminal.interrupted import INTERRUPTED


def train(
    recipe: Recipe,
    set_: Set = [],
    deepspeed_config: DeepSpeedConfig = None,
    output_dir: Annotated[Path | None, typer.Option("--output_dir", help="default: runs/RECIPE")] = None,
    resume: Annotated[str | None, typer.Option("--resume", metavar="WHERE", help=RESUME)] = None,
    hostfile: Annotated[Path | None, typer.Option("--hostfile", help="compare the ranks' places with this hostfile")] = None,
    allow_changes: AllowChanges = False,
    stage: StageName = None,
    side_by_side: Annotated[
        bool, typer.Option("--side_by_side", help="stages that do not need each other at a time, on equal parts of the ranks")
    ] = False,
    local_rank: LocalRank = None,
):
    """Train a recipe. Start it under deepspeed, torchrun, accelerate launch or srun for several ranks.

    SIGTERM or SIGUSR1 to any rank: a checkpoint after the current step, and exit code 75; Ctrl-C: the same, and exit code 130. A
    second one ends at once.

    A recipe of several stages trains those that are not finished, in order, each in a folder of its own in the output folder,
    where its exported model lies in model/.

    Example: deepspeed --module imp_ds train mine.py --set train.steps=100 --resume auto
    """
    from imp_ds.recipes import get_recipe
    from imp_ds.stages import StagedRun, default_folder
    from imp_ds.train.stages.job import own_job

    take_local_rank(local_rank)
    _check_resume(resume)
    run = get_recipe(recipe).override(set_)
    if isinstance(run, StagedRun):
        out = output_dir or default_folder(run)
        if (job := own_job()) is None:
            _train_stages(run, out, chosen=stage, resume=resume, side_by_side=side_by_side)
        run, output_dir, resume = run.run_of(job.stage, out), out / job.stage, job.resume
        hostfile = hostfile if job.alone else None  # it places all ranks, not those of a part
    elif stage is not None or side_by_side:
        raise UserError("the recipe has no stages", got=f"--stage {stage}" if stage else "--side_by_side", fix="leave it out")
    from imp_ds.train.trainer import train as run_training

    def training() -> None:
        folder = output_dir or Path("runs") / run.name
        run_training(run, folder, deepspeed_config, resume, hostfile, allow_changes=allow_changes)
        if own_job() is not None:
            _export_stage(folder)

    _train(training)


def _train_stages(staged, out: Path, **options) -> NoReturn:
    from imp_ds.train.stages.driver import train_stages

    command = [sys.executable, "-u", "-m", "imp_ds", *sys.argv[1:]]
    _train(lambda: train_stages(staged, out, command, **options))


def _export_stage(run_dir: Path) -> None:
    """What rank 0 does when a stage is trained; a signal leaves no half of a model behind."""
    from imp_ds.stages import MODEL

    if int(os.environ["RANK"]) or (run_dir / MODEL / "config.json").exists():
        return
    from imp_ds.commands.export import export
    from imp_ds.train.preemption import EXIT_CODE, SIGNALS

    for number in SIGNALS:
        signal.signal(number, lambda number, frame: sys.exit(INTERRUPTED if number == signal.SIGINT else EXIT_CODE))
    export(run_dir, run_dir / MODEL)


def _check_resume(resume: str | None) -> None:
    if not (resume in (None, "auto", "latest") or resume.isdecimal()):
        raise UserError("--resume is not understood", got=repr(resume), allowed="auto, latest or the number of a step")


def _train(training: Callable[[], int | None]) -> NoReturn:
    """Train, and end this rank: with the exit code that it gives, or that of what was preempted, after a signal."""
    from imp_ds.train.preemption import Preempted

    try:
        code = training() or 0
    except Preempted as end:
        code = end.code
        if int(os.environ.get("RANK", "0")) == 0:
            sys.stderr.write(f"{end}\n")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # all is written; what is left is a teardown that gloo's threads abort in 1 or 2 of 100 runs
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise typer.Exit(code)


def tune(
    model: Annotated[Path, typer.Argument(help="folder of an exported model")],
    evaluation: Annotated[str, typer.Argument(help="name of an evaluation that names classes: what is tuned to")],
    method: Annotated[
        str, typer.Option("--method", help="prompt: learned prompts, norms and a head; linear: a head alone; full: all weights")
    ] = "prompt",
    fraction: Annotated[float, typer.Option("--fraction", help="share of each class's training samples that is used")] = 0.01,
    steps: Annotated[int, typer.Option("--steps", min=1, help="optimizer steps")] = 500,
    batch_size: Annotated[int, typer.Option("--batch_size", min=1, help="samples of a step, over all ranks")] = 32,
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.0, help="peak learning rate; default: 1e-3, linear 1e-2, full 1e-4")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="of the samples that are drawn, their order and the prompts")] = 0,
    prompts: Annotated[int, typer.Option("--prompts", help="prompts in each layer; method prompt")] = 10,
    separate: Annotated[bool, typer.Option("--separate", help="class names have prompts of their own")] = False,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="that names the evaluation and its data; default: the model's own run")
    ] = None,
    stage: StageName = None,
    set_: Annotated[
        list[str],
        typer.Option("--set", metavar="PATH=VALUE", help="change that configuration, for example data.root=DIR; repeatable"),
    ] = [],
    deepspeed_config: DeepSpeedConfig = None,
    output_dir: Annotated[Path | None, typer.Option("--output_dir", help="default: runs/MODEL_EVALUATION_METHOD")] = None,
    resume: Annotated[str | None, typer.Option("--resume", metavar="WHERE", help="as of train: auto, latest or a step")] = None,
    allow_changes: AllowChanges = False,
    local_rank: LocalRank = None,
):
    """Tune an exported model to the classes of an evaluation, on a part of its training data: by prompts (Uni-Perceiver-MoE), by
    a linear head, or as a whole. Writes a run, its scores before and after, and the tuned model to OUTPUT_DIR/model.

    Example: imp_ds tune model image --fraction 0.01
    """
    from imp_ds.cli.recipe_runs import other_run
    from imp_ds.commands.tune_command import tune as run_tuning
    from imp_ds.commands.tuning import Tuning

    take_local_rank(local_rank)
    _check_resume(resume)
    asked = Tuning(method, fraction, steps, batch_size, rate, seed, prompts, "separate" if separate else "shared")
    folder = output_dir or Path("runs") / f"{model.resolve().name}_{evaluation}_{method}"
    source = other_run(recipe, stage)
    options = dict(source=source, settings=set_, ds_path=deepspeed_config, resume=resume, allow_changes=allow_changes)


    def training() -> None:
        run_tuning(model, evaluation, asked, folder, **options)

    _train(training)
