"""Commands about machines and what a run costs on them: plan, profile, doctor.

Heavy modules are imported inside the commands, so that help is there at once.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from imp_ds.cli.options import RECIPE, LocalRank, Recipe, Set, StageName, take_local_rank
from imp_ds.errors import UserError


def plan(
    recipe: Recipe,
    nodes: Annotated[int, typer.Option("--nodes", min=1)] = 1,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="ranks of a node")] = 1,
    precision: Annotated[str | None, typer.Option("--precision", help="bf16 or float32; default: that of the profile")] = None,
    zero: Annotated[int, typer.Option("--zero", min=0, max=3, help="ZeRO stage")] = 2,
    profile_file: Annotated[Path | None, typer.Option("--profile", help="file of the command profile; default: one H200")] = None,
    gpu_link_gbs: Annotated[float, typer.Option("--gpu_link_gbs", min=0.001, help="GB/s of a rank inside its node")] = 450.0,
    node_link_gbs: Annotated[float, typer.Option("--node_link_gbs", min=0.001, help="GB/s of a rank to other nodes")] = 50.0,
    set_: Set = [],
    stage: StageName = None,
):
    """Say what a recipe costs on a layout: parameters, tokens, memory, time, communication, expert groups. Needs no GPU.

    Example: imp_ds plan imp_moe_b --nodes 4 --gpus 8
    """
    from rich.console import Console

    from imp_ds.cli.recipe_runs import each_run
    from imp_ds.commands.doctor.recipe import missing_models
    from imp_ds.data.class_names import with_counted_classes
    from imp_ds.planning.hardware_profile import HardwareProfile
    from imp_ds.planning.plan import plan as make_plan
    from imp_ds.planning.table import show
    from imp_ds.recipes import get_recipe
    from imp_ds.stages import default_folder

    # a file has no width; tables are not cut there
    console = Console() if sys.stdout.isatty() else Console(width=140)
    links = dict(gpu_link_gbs=gpu_link_gbs, node_link_gbs=node_link_gbs)
    measured = HardwareProfile.load(profile_file) if profile_file else None
    runs, left_out = each_run(recipe, stage, set_), []
    for name, run in runs.items():
        if name is not None:
            console.rule(f"stage {name}", align="left")
        try:
            show(make_plan(with_counted_classes(run), nodes, gpus, precision, stage=zero, profile=measured, **links), console)
        except UserError as error:
            if len(runs) == 1:
                raise
            left_out.append(name)
            console.print(f"not planned: {error.one_line}")
    if left_out:
        folder = default_folder(get_recipe(recipe))
        missing = dict.fromkeys(line for name in left_out for line in missing_models(runs[name], folder).values())
        console.rule(align="left")
        console.print("\n".join([f"not planned: {', '.join(left_out)}", *missing]))
        raise typer.Exit(1)


def profile(
    out: Annotated[Path, typer.Argument(help="JSON file to write, for plan --profile")],
    precision: Annotated[str | None, typer.Option("--precision", help="bf16 or float32; default: bf16 on a GPU")] = None,
    local_rank: LocalRank = None,
):
    """Measure how fast this machine is, in about a minute; under a launcher also the links between its ranks.

    Example: imp_ds profile profile.json
    """
    from imp_ds.planning.measure.engine import command

    take_local_rank(local_rank)
    command(out, precision)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        os._exit(0)  # before the teardown that gloo's threads abort in 1 or 2 of 100 runs


def doctor(
    recipe: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help=f"check also what it reads: data, models, stages. {RECIPE}")
    ] = None,
    hostfile: Annotated[Path | None, typer.Option("--hostfile", help="check this hostfile too")] = None,
    set_: Set = [],
    stage: StageName = None,
):
    """Say what this machine has and lacks, and whether all is there that a recipe reads. Exit code 1 when training cannot work.

    Example: imp_ds doctor talk --hostfile hosts
    """
    from imp_ds.commands.doctor.machine import examine

    if recipe is None and (set_ or stage):
        raise UserError("--set and --stage are of a recipe", got="no recipe", fix="imp_ds doctor RECIPE")
    checks = examine(hostfile) + ([] if recipe is None else _recipe_checks(recipe, stage, set_))
    width = max(len(check.name) for check in checks)
    for check in checks:
        typer.echo(f"{check.state:6}  {check.name:{width}}  {check.found}" + (f"  ({check.advice})" if check.advice else ""))
    if any(check.state == "broken" for check in checks):
        raise typer.Exit(1)


def _recipe_checks(recipe: str, stage: str | None, settings: list[str]) -> list:
    from imp_ds.cli.recipe_runs import each_run
    from imp_ds.commands.doctor.recipe import examine_run, examine_stages
    from imp_ds.recipes import get_recipe
    from imp_ds.stages import StagedRun, default_folder

    found = get_recipe(recipe)
    out = default_folder(found) if isinstance(found, StagedRun) else None
    runs = each_run(recipe, stage, settings)
    checks = [check for name, run in runs.items() for check in examine_run(run, name, out)]
    return checks + ([examine_stages(found, out, recipe)] if isinstance(found, StagedRun) else [])
