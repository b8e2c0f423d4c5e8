"""The command line, `imp_ds` or `python -m imp_ds`: which commands there are. Each is declared in a file beside this one.

Heavy modules are imported inside the commands, so that help is there at once.
"""

import os
import sys
from itertools import islice
from typing import Annotated

import typer

from imp_ds import foreign_code
from imp_ds.cli import data, machines, models, recipes, studies, training, vectors
from imp_ds.cli.options import LocalRank, take_local_rank
from imp_ds.cli.quoting import unquote
from imp_ds.errors import UserError

ADDITIONS = "--import"


def _group(**options) -> typer.Typer:
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, **options)


app = _group(no_args_is_help=True)
_groups = {
    "recipes": _group(invoke_without_command=True, callback=recipes.recipes),
    "corpus": _group(help="Make a corpus.", no_args_is_help=True),
    "data": _group(help="Look at the data of a recipe.", no_args_is_help=True),
}
for name, function in (
    ("train", training.train),
    ("eval", models.evaluate),
    ("bench", models.bench),
    ("predict", models.predict),
    ("embed", vectors.embed),
    ("search", vectors.search),
    ("demo", vectors.demo),
    ("chat", models.chat),
    ("export", models.export),
    ("upcycle", models.upcycle),
    ("tune", training.tune),
    ("plan", machines.plan),
    ("profile", machines.profile),
    ("report", studies.report),
    ("interference", studies.interference),
    ("compare-routers", studies.compare_routers),
    ("compare-experts", studies.compare_experts),
    ("doctor", machines.doctor),
    ("recipes show", recipes.show),
    ("recipes copy", recipes.copy),
    ("recipes fields", recipes.fields),
    ("corpus digits", data.corpus_digits),
    ("corpus talk", data.corpus_talk),
    ("data check", data.data_check),
    ("data show", data.data_show),
    ("data tokenizer", data.data_tokenizer),
):
    *group, command = name.split()
    (_groups[group[0]] if group else app).command(command)(function)
app.command("quote", context_settings={"ignore_unknown_options": True})(recipes.quote)
for name, group in _groups.items():
    app.add_typer(group, name=name)


@app.callback()
def launched(
    local_rank: LocalRank = None,
    trust_remote_code: Annotated[
        bool, typer.Option(foreign_code.OPTION, help="of any command: run code that comes with a tokenizer")
    ] = False,
    additions: Annotated[
        list[str], typer.Option(ADDITIONS, metavar="MODULE", help="of any command: import what registers parts of your own")
    ] = [],
):
    """Train, evaluate and load multimodal mixture-of-experts models on DeepSpeed."""
    # the deepspeed launcher puts its argument before ours, so before the command
    take_local_rank(local_rank)
    if trust_remote_code:
        foreign_code.trust()
    if additions:
        from imp_ds.recipes.outside import import_users

        for module in additions:
            import_users(module, f"the module of {ADDITIONS}")


def main() -> None:
    """Run a command. A UserError is printed in one block, exit code 2; any other error keeps its traceback.

    Raises KeyboardInterrupt after Ctrl-C.
    """
    try:
        app(_in_order(unquote(sys.argv[1:])), prog_name="imp_ds")
    except UserError as error:
        _leave(error)
    except SystemExit as end:
        # typer makes an exit code of it
        if end.__context__ is not None and isinstance(end.__context__.__cause__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


def _in_order(arguments: list[str]) -> list[str]:
    """What holds for every command stands before it; a script that starts a command can be given it only after that."""
    general, rest, following = [], [], iter(arguments)
    for argument in following:
        if argument == foreign_code.OPTION or argument.startswith(f"{ADDITIONS}="):
            general.append(argument)
        elif argument == ADDITIONS:
            general += [argument, *islice(following, 1)]
        else:
            rest.append(argument)
    return general + rest


def _leave(error: UserError) -> None:
    """Say what is wrong, once, and end this rank.

    Before the ranks have joined, all of a machine meet the same error: rank 0 logs it, and the first of another machine logs a
    line, since a recipe may be missing there. After that an error may be one rank's own (its file, its disk): each logs a
    line, and ends at once, since a clean end would wait for the others.
    """
    rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
    joined = "torch.distributed" in sys.modules and sys.modules["torch.distributed"].is_initialized()
    first = (os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID")) == "0"
    if rank == 0:
        sys.stderr.write(f"error: {error}\n")  # in one piece: ranks share the terminal
    elif (joined or first) and not error.shared:
        sys.stderr.write(f"error on rank {rank}: {str(error).splitlines()[0]}\n")
    sys.stdout.flush()
    sys.stderr.flush()
    if joined or int(os.environ.get("WORLD_SIZE") or 1) > 1:  # ranks that have left together may still abort in gloo's threads
        os._exit(2)
    sys.exit(2)
