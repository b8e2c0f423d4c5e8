"""Commands that measure what runs have learned: interference, compare-routers, compare-experts.

Heavy modules are imported inside the commands, so that help is there at once.
"""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from imp_ds.cli.options import RECIPE, Set, StageName


def interference(
    run: Annotated[Path, typer.Argument(help="output folder of a training run")],
    step: Annotated[int | None, typer.Option("--step", min=0, help="of the checkpoint; default: the last")] = None,
    task: Annotated[list[str], typer.Option("--task", help="name of a task of the run; repeatable; default: all")] = [],
    weight: Annotated[
        list[str], typer.Option("--weight", help="parameters, with * for anything; repeatable; default: three feed-forwards")
    ] = [],
    samples: Annotated[int, typer.Option("--samples", min=2, help="gradients of each task; published: 100")] = 100,
    batch_size: Annotated[int, typer.Option("--batch_size", min=1, help="examples of each gradient")] = 32,
    data_: Annotated[Path | None, typer.Option("--data", help="folder of the corpus; default: that of the run")] = None,
    output: Annotated[Path | None, typer.Option("--output", help="JSON file; a picture beside it; default: in the run")] = None,
):
    """Measure how the tasks of a run help or hinder each other in its weights (Uni-Perceiver-MoE), as a matrix and a picture.

    Example: imp_ds interference runs/digits --output found.json
    """
    from imp_ds.commands.interference_command import interference as measure

    measure(
        run, step=step, tasks=task, weights=weight, samples=samples, batch_size=batch_size, data=data_, output=output
    )  # fmt: skip


def compare_routers(
    out: Annotated[Path, typer.Argument(help="folder to write; one that was begun is gone on with")],
    data_: Annotated[Path, typer.Option("--data", help="the digits corpus")] = Path("data/digits"),
    router: Annotated[
        list[str], typer.Option("--router", help="dense, token, context, modality, task or attribute; repeatable; default: all")
    ] = [],
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="runs of each router")] = 3,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="of each run; default: the recipe's")] = None,
    parallel: Annotated[int, typer.Option("--parallel", min=1, help="runs at a time, which share the cores")] = 1,
    samples: Annotated[int, typer.Option("--samples", min=2, help="gradients of each task, for the interference")] = 32,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="timed steps and inferences of each task")] = 15,
    set_: Set = [],
):
    """Train dense, token, context, modality, task and attribute routers alike, and write a table and a picture of what each costs
    and learns (Uni-Perceiver-MoE).

    Example: imp_ds compare-routers runs/routers --data data/digits
    """
    from imp_ds.commands.comparison.command import compare_routers as compare

    compare(
        out, data=data_, routers=router, seeds=seeds, steps=steps, parallel=parallel, samples=samples, rounds=rounds,
        settings=set_,
    )  # fmt: skip


def compare_experts(
    out: Annotated[Path, typer.Argument(help="folder to write; one that was begun is gone on with")],
    recipe: Annotated[str, typer.Option("--recipe", help=f"of a Uni-MoE with experts: {RECIPE}")],
    stage: StageName = None,
    trained: Annotated[
        Path | None, typer.Option("--trained", help="folder in which the stages before it are trained; default: the recipe's own")
    ] = None,
    variant: Annotated[
        list[str],
        typer.Option(
            "--variant",
            help="recipe, pretrained, identical, balance, no_balance, top_N, experts_N, first_half, second_half, interval, all, "
            "dense, dense_wide, or several with + between them; specialist_SLOT; paper, gain: sets of them; repeatable; default: "
            "all that the recipe can have",
        ),
    ] = [],
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="runs of each variant")] = 3,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="of each run; default: the recipe's")] = None,
    parallel: Annotated[int, typer.Option("--parallel", min=1, help="runs at a time, which share the cores")] = 1,
    set_: Set = [],
):
    """Train variants of the experts of a Uni-MoE alike (where they come from, how many there are and in which layers, how many a
    token takes, the balance loss), dense models beside them, ask each specialist alone, and write a table and a picture of their
    answers, beside the published numbers.

    Example: imp_ds compare-experts runs/experts --recipe talk --stage moe --variant gain
    """
    from imp_ds.cli.recipe_runs import started_run
    from imp_ds.commands.comparison.experts.command import compare_experts as compare

    words = ["imp_ds", "compare-experts", out, "--recipe", recipe]
    options = {"--stage": stage, "--trained": trained, "--seeds": seeds, "--steps": steps, "--parallel": parallel}
    words += [word for name, value in options.items() if value is not None for word in (name, value)]
    words += [word for name, values in (("--variant", variant), ("--set", set_)) for value in values for word in (name, value)]
    compare(
        out, started_run(recipe, stage, trained), variants=variant, seeds=seeds, parallel=parallel,
        settings=[*([] if steps is None else [f"train.steps={steps}"]), *set_], command=shlex.join(map(str, words)),
    )  # fmt: skip


def report(
    run: Annotated[Path, typer.Argument(help="output folder of a training run, also of one that is going on; or of stages")],
    output: Annotated[Path | None, typer.Option("--output", help="the page to write; default: report.html in the folder")] = None,
):
    """Write one HTML page of a run: what was trained at what cost, curves, scores, answers, experts, configuration.

    Example: imp_ds report runs/digits --output digits.html
    """
    from imp_ds.commands.report.command import report as write_report

    typer.echo(write_report(run, output))
