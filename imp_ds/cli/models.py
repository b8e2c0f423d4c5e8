"""Commands on trained models: eval, bench, predict, chat, export, upcycle.

Heavy modules are imported inside the commands, so that help is there at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from imp_ds.cli.options import RECIPE, LocalRank, Set, StageName, take_local_rank
from imp_ds.errors import UserError


def evaluate(
    model: Annotated[Path, typer.Argument(help="folder of an exported model")],
    data: Annotated[Path | None, typer.Option("--data", help="folder of the corpus; default: the one it was trained on")] = None,
    split: Annotated[str, typer.Option("--split", help="train, validation or test")] = "test",
    batch_size: Annotated[int, typer.Option("--batch_size", min=1)] = 64,
    output: Annotated[Path | None, typer.Option("--output", help="write the results as JSON to this file")] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help=f"whose evaluations and sources are taken, not the model's own: {RECIPE}")
    ] = None,
    set_: Set = [],
    stage: StageName = None,
):
    """Evaluate an exported model: zero-shot classification and retrieval, of its own run or of any recipe.

    Example: imp_ds eval model --recipe mine.py --set data.root=DIR --output scores.json
    """
    from imp_ds.cli.recipe_runs import other_run
    from imp_ds.commands.evaluate import evaluate as run_evaluation

    other = other_run(recipe, stage)
    run_evaluation(model, data, split, batch_size, output, recipe=other, settings=set_)


def bench(
    model: Annotated[Path, typer.Argument(help="folder of an exported model")],
    suite: Annotated[
        list[str],
        typer.Option("--suite", help="zero-shot, retrieval, probe, logistic, mteb:own, mteb:NAME (a benchmark, a task)"),
    ] = ["zero-shot", "retrieval", "probe"],
    recipe: Annotated[
        str | None, typer.Option("--recipe", help=f"whose evaluations and sources are taken, not the model's own: {RECIPE}")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="train, validation or test")] = "test",
    data: Annotated[Path | None, typer.Option("--data", help="folder of the corpus; default: the one it was trained on")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="folder for JSON and the picture; default: MODEL_bench beside the model")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch_size", min=1)] = 64,
    set_: Set = [],
    stage: StageName = None,
    local_rank: LocalRank = None,
):
    """Measure an exported model as the field does, in suites: zero-shot classification, retrieval, probes and mteb. What the
    folder of the results holds already is not measured again; start it under deepspeed for several ranks.

    Example: imp_ds bench model --suite zero-shot --suite probe --suite "mteb:MIEB(lite)"
    """
    from imp_ds.cli.recipe_runs import other_run
    from imp_ds.commands.bench.command import bench as run_bench

    take_local_rank(local_rank)
    other = other_run(recipe, stage)
    run_bench(model, suite, output, data=data, split=split, batch_size=batch_size, recipe=other, settings=set_)


def predict(
    model: Annotated[Path, typer.Argument(help="folder of an exported model")],
    paths: Annotated[list[Path], typer.Argument(help="files of images, videos or recordings, or folders of them")],
    task: Annotated[str | None, typer.Option("--task", help="whose classes; default: the only task that has some")] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="classes that are shown of each file")] = 5,
    output: Annotated[Path | None, typer.Option("--output", help="write the predictions as JSON lines to this file")] = None,
):
    """Say which classes a trained model finds in files, with their probabilities.

    Example: imp_ds predict model photos/ new.png --output predicted.jsonl
    """
    from imp_ds.commands.predict import predict as run_prediction

    run_prediction(model, paths, task=task, top=top, output=output)


def chat(
    model: Annotated[Path, typer.Argument(help="folder of an exported model that answers")],
    question: Annotated[str | None, typer.Argument(help="what is asked; default: a conversation, line by line")] = None,
    image: Annotated[list[Path], typer.Option("--image", help="file of an image; repeatable")] = [],
    video: Annotated[list[Path], typer.Option("--video", help="file of a video; repeatable")] = [],
    audio: Annotated[list[Path], typer.Option("--audio", help="file of a recording; repeatable")] = [],
    max_new_tokens: Annotated[
        int | None, typer.Option("--max_new_tokens", min=1, help="of an answer; default: 256, or what there is room for")
    ] = None,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0: the likeliest answer; else drawn")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="of what is drawn")] = 0,
):
    """Ask a trained model about images, videos and audio; the answer is written as it comes.

    Example: imp_ds chat model --image photo.png "What is in the picture?"
    """
    from imp_ds.commands.chat_command import Sampling
    from imp_ds.commands.chat_command import chat as run_chat

    media = [("image", path) for path in image] + [("video", path) for path in video] + [("audio", path) for path in audio]
    run_chat(model, question, media, Sampling(max_new_tokens, temperature, seed))


def export(
    run: Annotated[Path, typer.Argument(help="output folder of a training run")],
    out: Annotated[Path, typer.Argument(help="folder to write, for from_pretrained")],
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", metavar="WHICH", help="latest, best (that of train.best) or the number of a step")
    ] = "latest",
    merge: Annotated[bool, typer.Option("--merge", help="merge the experts of constant gates: a dense model")] = False,
    task: Annotated[list[str], typer.Option("--task", help="that a merged model serves; repeatable; default: all")] = [],
    stock: Annotated[bool, typer.Option("--stock", help="as classes of transformers, which load without imp_ds")] = False,
    adapter: Annotated[bool, typer.Option("--adapter", help="not the model, but its LoRA as an adapter that PEFT loads")] = False,
    ema: Annotated[bool, typer.Option("--ema", help="the average of the weights that train.ema has kept")] = False,
    push_to_hub: Annotated[
        str | None, typer.Option("--push_to_hub", metavar="NAME", help="also upload the folder, as this repository of the Hub")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="with --push_to_hub: a new repository is private")] = False,
):
    """Export a run as a folder that ImpModel.from_pretrained, AutoModel and AutoProcessor load.

    Example: imp_ds export runs/digits model --checkpoint best
    """
    from imp_ds.commands.export import examples_of, export_adapter
    from imp_ds.commands.export import export as run_export
    from imp_ds.commands.sharing.hub import check_push, push
    from imp_ds.terminal.stage_progress import StageProgress
    from imp_ds.train.trained_run import checkpoint_step
    from imp_ds.written_files import wrote_folder

    if task and not merge:
        raise UserError("--task chooses what a merged model serves", got=", ".join(task), fix="give --merge too")
    if adapter and (merge or stock or ema):
        got = f"--adapter and --{'merge' if merge else 'stock' if stock else 'ema'}"
        raise UserError("an adapter is no whole model", got=got, fix="give one of them")
    if private and push_to_hub is None:
        raise UserError("--private is about a repository of the Hub", got="no --push_to_hub", fix="give --push_to_hub NAME too")
    step = checkpoint_step(run, checkpoint)
    if push_to_hub is not None:
        check_push(push_to_hub)
    if adapter:
        with StageProgress() as report:
            export_adapter(run, out, step=step, report=report)
        use = f"PEFT, and --set model.adapter={out}"
    else:
        with StageProgress() as report:
            run_export(run, out, step=step, merge_tasks=task if merge else None, report=report, stock=stock, averaged=ema)
        use = "from_pretrained of transformers alone" if stock else f"from_pretrained, {examples_of(out)}"
    typer.echo(wrote_folder(out, use))
    if push_to_hub is not None:
        typer.echo(f"uploaded to {push(out, push_to_hub, private)}")


def upcycle(
    model: Annotated[Path, typer.Argument(help="folder of an exported dense model, or of a run")],
    out: Annotated[Path, typer.Argument(help="folder to write, for from_pretrained and train.init_from")],
    num_experts: Annotated[int, typer.Option("--num_experts", help="experts of each MoE layer")] = 8,
    moe_layers: Annotated[
        str | None, typer.Option("--moe_layers", help='"last:N", "every:N", or indices such as 1,3; default: the last half')
    ] = None,
    gate: Annotated[str | None, typer.Option("--gate", help="token (default), context, modality, task or attribute")] = None,
    linear: Annotated[list[str], typer.Option("--linear", help="linear layer with experts: qkv, out, up, down; repeatable")] = [],
    router: Annotated[str | None, typer.Option("--router", help="how experts are chosen: expert_choice, top_k, ...")] = None,
    capacity_factor: Annotated[float | None, typer.Option("--capacity_factor", help="num_experts: as the dense model")] = None,
    experts_per_token: Annotated[int | None, typer.Option("--experts_per_token", help="under top_k")] = None,
    slices: Annotated[int, typer.Option("--slices", help="1: an expert is a copy; G: one of G parts of a copy")] = 1,
    noise: Annotated[float, typer.Option("--noise", help="on the experts, in units of their standard deviation")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="of the routers and the noise")] = 0,
):
    """Make a dense model one with experts, each a copy of its feed-forward, a slice of one, or a copy of a linear layer (sparse
    upcycling).

    Example: imp_ds upcycle model sparse --num_experts 8
    """
    from imp_ds.commands.upcycle_command import layers, upcycle_folder
    from imp_ds.written_files import wrote_folder

    upcycle_folder(
        model, out, num_experts=num_experts, moe_layers=layers(moe_layers), gate=gate, conditional_linears=linear or None,
        router=router, capacity_factor=capacity_factor, experts_per_token=experts_per_token, slices=slices, noise=noise,
        seed=seed,
    )  # fmt: skip
    typer.echo(wrote_folder(out, f"from_pretrained and --set train.init_from={out}"))
