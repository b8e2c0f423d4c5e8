"""Commands on data: corpus digits and talk; data check, show and tokenizer.

Heavy modules are imported inside the commands, so that help is there at once.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from imp_ds.cli.options import Recipe, Set, StageName
from imp_ds.errors import UserError

Out = Annotated[Path, typer.Argument(help="folder to write")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="the same seed gives the same bytes")]
Scale = Annotated[float, typer.Option("--scale", min=0.001, max=1.0, help="share of the full size")]


def corpus_digits(out: Out, seed: Seed = 0, scale: Scale = 1.0):
    """Images, videos and speech of the ten digits, with captions.

    Example: imp_ds corpus digits data/digits --scale 0.1
    """
    from imp_ds.data.digits import build

    _make(build, out, seed, scale)


def corpus_talk(out: Out, seed: Seed = 0, scale: Scale = 1.0):
    """Conversations about the digits: written and spoken questions about images, videos and speech. Of the same seed, the
    handwriting and voices of each split are those of the corpus digits.

    Example: imp_ds corpus talk data/talk --scale 0.1
    """
    from imp_ds.data.talk import build

    _make(build, out, seed, scale)


def _make(build: Callable[..., bool], out: Path, seed: int, scale: float):
    from imp_ds.terminal.stage_progress import StageProgress

    start = time.monotonic()
    with StageProgress() as report:
        written = build(out, seed, scale=scale, progress=report)
    if not written:
        typer.echo(f"{out}: found complete, nothing done")
        return
    sizes = [path.stat().st_size for path in out.rglob("*") if path.is_file()]
    typer.echo(f"{out}: written in {time.monotonic() - start:.0f} s, {len(sizes)} files, {sum(sizes) / 1e6:.0f} MB")


Split = Annotated[str, typer.Option("--split", help="train, validation or test")]
Run = Annotated[Path | None, typer.Option("--run", help="output folder of a training run whose processor is taken")]


def data_check(
    recipe: Recipe,
    split: Split = "train",
    samples: Annotated[int, typer.Option("--samples", min=1, help="looked at of each source, spread over it")] = 1000,
    all_: Annotated[bool, typer.Option("--all", help="look at every sample")] = False,
    processes: Annotated[int | None, typer.Option("--processes", min=0, help="that look; default: one for each core")] = None,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="of the plan whose workers are counted")] = 1,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="ranks of a node of that plan")] = 1,
    profile_file: Annotated[Path | None, typer.Option("--profile", help="file of the command profile; default: one H200")] = None,
    run: Run = None,
    output: Annotated[Path | None, typer.Option("--output", help="write what was found as JSON to this file")] = None,
    set_: Set = [],
    stage: StageName = None,
):
    """Read samples of every source of a recipe, and show what is in them, what is broken, how fast they are decoded, and how many
    workers a plan needs. Exit code 1 when more is broken than data.max_rejected allows.

    Example: imp_ds data check mine.py --all --output found.json
    """
    from imp_ds.cli.recipe_runs import each_run
    from imp_ds.commands.check.command import check
    from imp_ds.commands.check.request import CheckRequest
    from imp_ds.data.class_names import with_counted_classes
    from imp_ds.planning.check_plan import plan_for_check
    from imp_ds.planning.hardware_profile import HardwareProfile

    runs, good = each_run(recipe, stage, set_), True
    if len(runs) > 1 and (output or run):
        raise UserError("--output and --run are of one stage", got="no --stage", allowed=f"--stage NAME of {', '.join(runs)}")
    for name, found in runs.items():
        if len(runs) > 1:
            typer.echo(f"stage {name}")
        settings = with_counted_classes(found)
        planned = plan_for_check(settings, nodes, gpus, HardwareProfile.load(profile_file) if profile_file else None)
        request = CheckRequest(settings, planned, split, None if all_ else samples, processes, run)
        good = check(request, output) and good
    if not good:
        raise typer.Exit(1)


def data_show(
    recipe: Recipe,
    out: Annotated[Path, typer.Argument(help="HTML file to write")],
    split: Split = "train",
    samples: Annotated[int, typer.Option("--samples", min=1, help="of each task and view")] = 8,
    run: Run = None,
    set_: Set = [],
    stage: StageName = None,
):
    """Write one page of what the model is fed: pictures, frame strips, spectrograms with their recordings, and captions.

    Example: imp_ds data show mine.py page.html
    """
    from imp_ds.cli.recipe_runs import one_run
    from imp_ds.commands.show_command import show

    typer.echo(show(one_run(recipe, stage, set_), split, samples, run, out))


def data_tokenizer(
    recipe: Recipe,
    out: Annotated[Path, typer.Argument(help="folder to write, for --set data.tokenizer=FOLDER")],
    vocab_size: Annotated[int | None, typer.Option("--vocab_size", min=8, help="default: data.vocab_size of the recipe")] = None,
    set_: Set = [],
    stage: StageName = None,
):
    """Train a SentencePiece tokenizer on the captions of a recipe, and show how it fits them.

    Example: imp_ds data tokenizer mine.py tokenizer --vocab_size 8000
    """
    from imp_ds.cli.recipe_runs import one_run
    from imp_ds.commands.tokenizer_command import train_on_captions

    train_on_captions(one_run(recipe, stage, set_), out, vocab_size)
