"""What several commands take: the recipe, its changes, and what launchers give."""

import os
from pathlib import Path
from typing import Annotated

import typer

RECIPE = "NAME of `imp_ds recipes`, my_recipe.py, my_recipe.py:function, package.module:function, or a run as .json or .yaml"
Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help=RECIPE)]
Set = Annotated[
    list[str], typer.Option("--set", metavar="PATH=VALUE", help="change the recipe, for example train.steps=100; repeatable")
]
StageName = Annotated[str | None, typer.Option("--stage", metavar="NAME", help="of a recipe of several stages: this one alone")]
DeepSpeedConfig = Annotated[Path | None, typer.Option("--deepspeed_config", help="JSON; default: ZeRO 2 of ds_configs/")]
LocalRank = Annotated[int | None, typer.Option("--local_rank", "--local-rank", hidden=True, help="given by the launcher")]
AllowChanges = Annotated[
    bool,
    typer.Option("--allow_changes", help="with --resume: the learning rate, clipping, batch sizes and intervals may differ"),
]
RESUME = (
    "go on with the run in the output folder. auto: from its newest complete checkpoint, or from the start when there is none; "
    "latest: there must be one; a number: from the checkpoint of that step, refused while there are later ones"
)


def take_local_rank(local_rank: int | None) -> None:
    """What the deepspeed launcher gives as an argument, in the environment."""
    if local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(local_rank))
