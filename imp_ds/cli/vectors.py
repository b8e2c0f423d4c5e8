"""Commands on vectors of a trained model: embed, search, demo.

Heavy modules are imported inside the commands, so that help is there at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from imp_ds.cli.options import RECIPE, LocalRank, Set, StageName, take_local_rank
from imp_ds.errors import UserError

Model = Annotated[Path, typer.Argument(help="folder of an exported model")]
Vectors = Annotated[Path, typer.Argument(metavar="OUT.parquet", help="file that imp_ds embed wrote with this model")]


def embed(
    model: Model,
    source: Annotated[
        str, typer.Argument(metavar="FOLDER|RECIPE", help=f"a folder of media files and .txt; or, for its sources, {RECIPE}")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.parquet", help="file to write; one that was begun is gone on with")],
    split: Annotated[str, typer.Option("--split", help="of a recipe's sources: train, validation or test")] = "test",
    task: Annotated[
        str | None, typer.Option("--task", help="whose views and condition are taken; default: any that fits")
    ] = None,
    set_: Set = [],
    stage: StageName = None,
    local_rank: LocalRank = None,
):
    """Write one vector for each file of a folder, or each sample of a recipe's sources, to a Parquet file; the same command goes
    on after a kill. Start it under deepspeed for several ranks.

    Example: imp_ds embed model photos/ photos.parquet
    """
    from imp_ds.cli.recipe_runs import one_run
    from imp_ds.commands.vectors.embed_command import embed as run_embed

    take_local_rank(local_rank)
    if split not in ("train", "validation", "test"):
        raise UserError("unknown split", got=split, allowed="train, validation, test")
    folder = Path(source)
    if folder.is_dir() and (set_ or stage):
        raise UserError("--set and --stage are of a recipe", got=f"the folder {source}", fix="a recipe, or neither")
    run_embed(model, folder if folder.is_dir() else one_run(source, stage, set_), out, split=split, task=task)


def search(
    model: Model,
    vectors: Vectors,
    query: Annotated[str, typer.Argument(help="a text, or the name of an image, a video, a recording or a .txt")],
    top: Annotated[int, typer.Option("--top", min=1, help="items that are shown")] = 10,
    only: Annotated[
        list[str],
        typer.Option("--only", metavar="KIND", help="image, video, audio, text, or a modality; repeatable; default: all"),
    ] = [],
    output: Annotated[Path | None, typer.Option("--output", help="write the items as JSON lines to this file")] = None,
):
    """Show the items of a file of vectors that are nearest to a text or a file, across modalities.

    Example: imp_ds search model photos.parquet "a dog on a beach" --only image
    """
    from imp_ds.commands.vectors.search_command import search as run_search

    run_search(model, vectors, query, top=top, only=only, output=output)


def demo(
    model: Model,
    vectors: Vectors,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="of this machine alone; 0: a free one")] = 8000,
    top: Annotated[int, typer.Option("--top", min=1, help="items of each kind that are shown")] = 8,
):
    """Open a page on this machine, at 127.0.0.1, that shows what is nearest to a text or a dropped image, video or recording.

    Example: imp_ds demo model photos.parquet --port 8000
    """
    from imp_ds.commands.vectors.demo_command import demo as run_demo

    run_demo(model, vectors, port, top)
