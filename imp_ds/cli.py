"""The command line: `python -m imp_ds` train, eval, export, upcycle, plan, rates, doctor, corpus, data, interference,
compare-routers.

Heavy modules are imported inside the commands, so that help is there at once.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from imp_ds.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
corpus = typer.Typer(help="Make a corpus.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(corpus, name="corpus")
data = typer.Typer(help="Look at the data of a recipe.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data, name="data")

Recipe = Annotated[str, typer.Argument(help="name of a recipe, for example digits")]
Set = Annotated[
    list[str], typer.Option("--set", metavar="PATH=VALUE", help="change the recipe, for example train.steps=100; repeatable")
]
LocalRank = Annotated[int | None, typer.Option("--local_rank", "--local-rank", hidden=True, help="given by the launcher")]

AllowChanges = Annotated[
    bool,
    typer.Option("--allow_changes", help="with --resume: the learning rate, clipping, batch sizes and intervals may differ"),
]
RESUME = (
    "go on with the run in the output folder. auto: from its newest whole checkpoint, or from the start when there is none; "
    "latest: there must be one; a number: from the checkpoint of that step, refused while there are later ones"
)


@app.callback()
def launched(local_rank: LocalRank = None):
    """Train, evaluate and load multimodal mixture-of-experts models on DeepSpeed."""
    # the deepspeed launcher puts its argument before ours, so before the command
    _take_local_rank(local_rank)


def _take_local_rank(local_rank: int | None) -> None:
    if local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(local_rank))


@app.command()
def train(
    recipe: Recipe,
    set_: Set = [],
    deepspeed_config: Annotated[
        Path | None, typer.Option("--deepspeed_config", help="JSON; default: ZeRO 2 of ds_configs/")
    ] = None,
    output_dir: Annotated[Path | None, typer.Option("--output_dir", help="default: runs/RECIPE")] = None,
    resume: Annotated[str | None, typer.Option("--resume", metavar="WHERE", help=RESUME)] = None,
    hostfile: Annotated[Path | None, typer.Option("--hostfile", help="compare the ranks' places with this hostfile")] = None,
    allow_changes: AllowChanges = False,
    local_rank: LocalRank = None,
):
    """Train a recipe. Start it under deepspeed, torchrun, accelerate launch or srun for several ranks.

    SIGTERM or SIGUSR1 to any rank: a checkpoint after the current step, and exit code 75; a second one ends at once.
    """
    from imp_ds.recipes import get_recipe

    _take_local_rank(local_rank)
    _check_resume(resume)
    run = get_recipe(recipe).override(set_)
    from imp_ds.train.trainer import train as run_training

    _train(lambda: run_training(run, output_dir or Path("runs") / run.name, deepspeed_config, resume, hostfile,
                                allow_changes=allow_changes))  # fmt: skip


def _check_resume(resume: str | None) -> None:
    if not (resume in (None, "auto", "latest") or resume.isdecimal()):
        raise UserError("--resume is not understood", got=repr(resume), allowed="auto, latest or the number of a step")


def _train(training: Callable[[], object]) -> NoReturn:
    """Train, and end this rank: with the exit code of what was preempted, after a signal."""
    from imp_ds.train.preemption import EXIT_CODE, Preempted

    code = 0
    try:
        training()
    except Preempted as end:
        code = EXIT_CODE
        if int(os.environ.get("RANK", "0")) == 0:
            sys.stderr.write(f"{end}\n")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # all is written; what is left is a teardown that gloo's threads abort in 1 or 2 of 100 runs
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise typer.Exit(code)


@app.command("eval")
def evaluate(
    model: Annotated[Path, typer.Argument(help="folder of an exported model")],
    data: Annotated[Path | None, typer.Option("--data", help="folder of the corpus; default: the one it was trained on")] = None,
    split: Annotated[str, typer.Option("--split", help="train, validation or test")] = "test",
    batch_size: Annotated[int, typer.Option("--batch_size", min=1)] = 64,
    output: Annotated[Path | None, typer.Option("--output", help="write the results as JSON to this file")] = None,
):
    """Evaluate an exported model: zero-shot classification and retrieval."""
    from imp_ds.evaluation.command import evaluate as run_evaluation

    run_evaluation(model, data, split, batch_size, output)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="folder of an exported model")],
    paths: Annotated[list[Path], typer.Argument(help="files of images, videos or recordings, or folders of them")],
    task: Annotated[str | None, typer.Option("--task", help="whose classes; default: the only task that has some")] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="classes that are shown of each file")] = 5,
    output: Annotated[Path | None, typer.Option("--output", help="write the predictions as JSON lines to this file")] = None,
):
    """Say which classes a trained model sees or hears in files, with their probabilities."""
    from imp_ds.commands.predict import predict as run_prediction

    run_prediction(model, paths, task=task, top=top, output=output)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="output folder of a training run")],
    out: Annotated[Path, typer.Argument(help="folder to write, for from_pretrained")],
    step: Annotated[int | None, typer.Option("--step", min=0, help="checkpoint to export; default: the last")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="blend the experts of constant gates: a dense model")] = False,
    task: Annotated[list[str], typer.Option("--task", help="that a merged model serves; repeatable; default: all")] = [],
):
    """Export a run as a folder that ImpModel.from_pretrained, AutoModel and AutoProcessor load."""
    from imp_ds.train.export import export as run_export

    if task and not merge:
        raise UserError("--task chooses what a merged model serves", got=", ".join(task), fix="give --merge too")
    run_export(run, out, step=step, merge_tasks=task if merge else None)


@app.command()
def upcycle(
    model: Annotated[Path, typer.Argument(help="folder of an exported dense model, or of a run")],
    out: Annotated[Path, typer.Argument(help="folder to write, for from_pretrained and train.init_from")],
    num_experts: Annotated[int, typer.Option("--num_experts", help="experts of each MoE layer")] = 8,
    moe_layers: Annotated[
        str | None, typer.Option("--moe_layers", help='"last:N", "every:N", or indices such as 1,3; default: the last half')
    ] = None,
    gate: Annotated[str | None, typer.Option("--gate", help="token (default), context, modality, task or attribute")] = None,
    map_: Annotated[list[str], typer.Option("--map", help="a linear map that gets experts: qkv, out, up, down; repeatable")] = [],
    router: Annotated[str | None, typer.Option("--router", help="expert_choice or top_k")] = None,
    capacity_factor: Annotated[float | None, typer.Option("--capacity_factor", help="num_experts: as the dense model")] = None,
    experts_per_token: Annotated[int | None, typer.Option("--experts_per_token", help="under top_k")] = None,
    slices: Annotated[int, typer.Option("--slices", help="1: an expert is a copy; G: one of G parts of a copy")] = 1,
    noise: Annotated[float, typer.Option("--noise", help="on the experts, in units of their standard deviation")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="of the routers and the noise")] = 0,
):
    """Make a dense model one with experts, each a copy of its feed-forward, a slice of one, or a copy of a linear map (sparse
    upcycling)."""
    from imp_ds.train.upcycle_command import layers, upcycle_folder

    upcycle_folder(
        model, out, num_experts=num_experts, moe_layers=layers(moe_layers), gate=gate, conditional_maps=map_ or None,
        router=router, capacity_factor=capacity_factor, experts_per_token=experts_per_token, slices=slices, noise=noise,
        seed=seed,
    )  # fmt: skip


@app.command()
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
    set_: Annotated[
        list[str],
        typer.Option("--set", metavar="PATH=VALUE", help="change that configuration, for example data.root=DIR; repeatable"),
    ] = [],
    deepspeed_config: Annotated[
        Path | None, typer.Option("--deepspeed_config", help="JSON; default: ZeRO 2 of ds_configs/")
    ] = None,
    output_dir: Annotated[Path | None, typer.Option("--output_dir", help="default: runs/MODEL_EVALUATION_METHOD")] = None,
    resume: Annotated[str | None, typer.Option("--resume", metavar="WHERE", help="as of train: auto, latest or a step")] = None,
    allow_changes: AllowChanges = False,
    local_rank: LocalRank = None,
):
    """Tune an exported model to the classes of an evaluation, on a part of its training data: by prompts (Uni-Perceiver-MoE), by
    a linear head, or as a whole. Writes a run, its scores before and after, and the tuned model to OUTPUT_DIR/model."""
    from imp_ds.recipes import get_recipe
    from imp_ds.train.tune_command import tune as run_tuning
    from imp_ds.train.tuning import Tuning

    _take_local_rank(local_rank)
    _check_resume(resume)
    asked = Tuning(method, fraction, steps, batch_size, rate, seed, prompts, "separate" if separate else "shared")
    folder = output_dir or Path("runs") / f"{model.resolve().name}_{evaluation}_{method}"
    source = None if recipe is None else get_recipe(recipe)
    options = dict(source=source, settings=set_, ds_path=deepspeed_config, resume=resume, allow_changes=allow_changes)
    _train(lambda: run_tuning(model, evaluation, asked, folder, **options))


@app.command()
def plan(
    recipe: Recipe,
    nodes: Annotated[int, typer.Option("--nodes", min=1)] = 1,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="ranks of a node")] = 1,
    precision: Annotated[str | None, typer.Option("--precision", help="bf16 or float32; default: that of the rates")] = None,
    zero: Annotated[int, typer.Option("--zero", min=0, max=3, help="ZeRO stage")] = 2,
    rates_file: Annotated[Path | None, typer.Option("--rates", help="what the command rates wrote; default: one H200")] = None,
    gpu_link_gbs: Annotated[float, typer.Option("--gpu_link_gbs", min=0.001, help="GB/s of a rank inside its node")] = 450.0,
    node_link_gbs: Annotated[float, typer.Option("--node_link_gbs", min=0.001, help="GB/s of a rank to other nodes")] = 50.0,
    set_: Set = [],
):
    """Say what a recipe costs on a layout: parameters, tokens, memory, time, communication, expert groups. Needs no GPU."""
    from rich.console import Console

    from imp_ds.recipes import get_recipe
    from imp_ds.train.plan import plan as make_plan
    from imp_ds.train.plan_table import show
    from imp_ds.train.rates import Rates

    # a file has no width; tables are not cut there
    console = Console() if sys.stdout.isatty() else Console(width=140)
    links = dict(gpu_link_gbs=gpu_link_gbs, node_link_gbs=node_link_gbs)
    measured = Rates.load(rates_file) if rates_file else None
    show(make_plan(get_recipe(recipe).override(set_), nodes, gpus, precision, stage=zero, rates=measured, **links), console)


@app.command()
def rates(
    out: Annotated[Path, typer.Argument(help="JSON file to write, for plan --rates")],
    precision: Annotated[str | None, typer.Option("--precision", help="bf16 or float32; default: bf16 on a GPU")] = None,
    local_rank: LocalRank = None,
):
    """Measure how fast this machine is, in about a minute; under a launcher also the links between its ranks."""
    from imp_ds.train.measure_engine import command

    _take_local_rank(local_rank)
    command(out, precision)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        os._exit(0)  # before the teardown that gloo's threads abort in 1 or 2 of 100 runs


@app.command()
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
    """Measure how the tasks of a run help or hinder each other in its weights (Uni-Perceiver-MoE), as a matrix and a picture."""
    from imp_ds.train.interference_command import interference as measure

    measure(
        run, step=step, tasks=task, weights=weight, samples=samples, batch_size=batch_size, data=data_, output=output
    )  # fmt: skip


@app.command("compare-routers")
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
    and learns (Uni-Perceiver-MoE)."""
    from imp_ds.comparison.command import compare_routers as compare

    compare(
        out, data=data_, routers=router, seeds=seeds, steps=steps, parallel=parallel, samples=samples, rounds=rounds,
        settings=set_,
    )  # fmt: skip


@app.command()
def doctor(hostfile: Annotated[Path | None, typer.Option("--hostfile", help="check this hostfile too")] = None):
    """Say what this machine has and lacks. Exit code 1 when training cannot work here."""
    from imp_ds.doctor import examine

    checks = examine(hostfile)
    width = max(len(check.name) for check in checks)
    for check in checks:
        typer.echo(f"{check.state:6}  {check.name:{width}}  {check.found}" + (f"  ({check.advice})" if check.advice else ""))
    if any(check.state == "broken" for check in checks):
        raise typer.Exit(1)


@corpus.command("digits")
def corpus_digits(
    out: Annotated[Path, typer.Argument(help="folder to write")],
    seed: Annotated[int, typer.Option("--seed", min=0, help="the same seed gives the same bytes")] = 0,
    scale: Annotated[float, typer.Option("--scale", min=0.001, max=1.0, help="share of the full size")] = 1.0,
):
    """Images, films and speech of the ten digits, with captions."""
    from imp_ds.data.digits import build
    from imp_ds.stage_progress import StageProgress

    start = time.monotonic()
    with StageProgress() as report:
        written = build(out, seed, scale=scale, progress=report)
    typer.echo(f"{out}: written in {time.monotonic() - start:.0f} s" if written else f"{out}: found whole, nothing done")


Split = Annotated[str, typer.Option("--split", help="train, validation or test")]
Run = Annotated[Path | None, typer.Option("--run", help="output folder of a training run whose processor is taken")]


@data.command("check")
def data_check(
    recipe: Recipe,
    split: Split = "train",
    samples: Annotated[int, typer.Option("--samples", min=1, help="looked at of each source, spread over it")] = 1000,
    all_: Annotated[bool, typer.Option("--all", help="look at every sample")] = False,
    processes: Annotated[int | None, typer.Option("--processes", min=0, help="that look; default: one for each core")] = None,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="of the plan whose workers are counted")] = 1,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="ranks of a node of that plan")] = 1,
    rates_file: Annotated[Path | None, typer.Option("--rates", help="what the command rates wrote; default: one H200")] = None,
    run: Run = None,
    output: Annotated[Path | None, typer.Option("--output", help="write what was found as JSON to this file")] = None,
    set_: Set = [],
):
    """Read samples of every source of a recipe, and say what is in them, what is broken, how fast they are decoded, and how many
    workers a plan needs. Exit code 1 when more is broken than data.max_rejected allows."""
    from imp_ds.recipes import get_recipe
    from imp_ds.train.check_command import check
    from imp_ds.train.plan import plan as make_plan
    from imp_ds.train.rates import Rates

    settings = get_recipe(recipe).override(set_)
    planned = make_plan(settings, nodes, gpus, rates=Rates.load(rates_file) if rates_file else None)
    if not check(settings, planned, split, None if all_ else samples, processes, run, output):
        raise typer.Exit(1)


@data.command("show")
def data_show(
    recipe: Recipe,
    out: Annotated[Path, typer.Argument(help="HTML file to write")],
    split: Split = "train",
    samples: Annotated[int, typer.Option("--samples", min=1, help="of each task and view")] = 8,
    run: Run = None,
    set_: Set = [],
):
    """Write one page of what the model is fed: pictures, film strips, spectrograms with their sounds, and captions."""
    from imp_ds.recipes import get_recipe
    from imp_ds.train.show_command import show

    typer.echo(show(get_recipe(recipe).override(set_), split, samples, run, out))


@data.command("tokenizer")
def data_tokenizer(
    recipe: Recipe,
    out: Annotated[Path, typer.Argument(help="folder to write, for --set data.tokenizer=FOLDER")],
    vocab_size: Annotated[int | None, typer.Option("--vocab_size", min=8, help="default: data.vocab_size of the recipe")] = None,
    set_: Set = [],
):
    """Train a SentencePiece tokenizer on the captions of a recipe, and say how it fits them."""
    from imp_ds.data.tokenizer_command import train_on_captions
    from imp_ds.recipes import get_recipe

    train_on_captions(get_recipe(recipe).override(set_), out, vocab_size)


def main() -> None:
    """Run a command. A UserError is printed in one block, exit code 2; any other error keeps its traceback."""
    try:
        app(prog_name="python -m imp_ds")
    except UserError as error:
        _leave(error)


def _leave(error: UserError) -> None:
    """Say what is wrong, once, and end this rank.

    Before the ranks have joined, all of them meet the same error, and rank 0 speaks. After that an error may be one
    rank's own (its file, its disk): each says a line, and ends at once, since a clean end would wait for the others.
    """
    rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
    joined = "torch.distributed" in sys.modules and sys.modules["torch.distributed"].is_initialized()
    if rank == 0:
        sys.stderr.write(f"error: {error}\n")  # in one piece: ranks share the terminal
    elif joined and not error.shared:
        sys.stderr.write(f"error on rank {rank}: {str(error).splitlines()[0]}\n")
    sys.stdout.flush()
    sys.stderr.flush()
    if joined:
        os._exit(2)
    sys.exit(2)
