"""Commands about recipes: list, show, copy, fields; and quoted arguments."""

from pathlib import Path
from typing import Annotated

import typer

from imp_ds.cli.options import Recipe, Set, StageName


def recipes(context: typer.Context):
    """List the recipes, a line each. Example: imp_ds recipes"""
    if context.invoked_subcommand is None:
        from imp_ds.commands.recipes import listed

        typer.echo(listed())


def show(
    recipe: Recipe,
    all_: Annotated[bool, typer.Option("--all", help="also the fields that have their defaults")] = False,
    set_: Set = [],
    stage: StageName = None,
):
    """Print a recipe as YAML, which every command takes as a recipe. Example: imp_ds recipes show digits > mine.yaml"""
    from imp_ds.cli.recipe_runs import whole_recipe
    from imp_ds.commands.recipes import shown

    typer.echo(shown(whole_recipe(recipe, stage, set_), full=all_), nl=False)


def copy(
    recipe: Recipe,
    out: Annotated[Path, typer.Argument(help="Python file to write; it must not exist")],
    set_: Set = [],
    stage: StageName = None,
):
    """Write a recipe as a Python file of your own, to change. Example: imp_ds recipes copy digits my_recipe.py"""
    from imp_ds.cli.recipe_runs import whole_recipe
    from imp_ds.commands.recipes import copied

    copied(whole_recipe(recipe, stage, set_), recipe, out)
    typer.echo(f"wrote {out}: imp_ds train {out}")


def fields():
    """Print the page of all fields that a recipe may set. Example: imp_ds recipes fields > docs/configuration.md"""
    from imp_ds.commands.fields import page

    typer.echo(page(), nl=False)


def quote(arguments: Annotated[list[str], typer.Argument(metavar="ARGUMENT ...")]):
    """Print one word for arguments, which no shell of another machine changes.

    Example: deepspeed --hostfile HOSTS --module imp_ds train mine.py $(imp_ds quote --set 'tasks.a.source.vision=jpg;png')
    """
    from imp_ds.cli.quoting import quote as word

    typer.echo(word(arguments))
