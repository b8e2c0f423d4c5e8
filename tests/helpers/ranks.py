"""A world of several ranks for a test, forked from one server process that has imported torch and DeepSpeed already.

Starting a launcher and importing DeepSpeed takes many seconds, forking takes none, so a test can afford a world of its own.
The launchers themselves are tested elsewhere. Every wait has a limit; whoever is left is killed with all of its children.
"""

import gc
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import NoReturn
from unittest import mock

from helpers.processes import environment, free_port

# what each rank would otherwise import for itself, for seconds: the commands with all that they import when they are called,
# what DeepSpeed imports for its first engine, and what draws and records
PRELOADED = [
    "imp_ds.train.trainer", "imp_ds.commands.export", "imp_ds.commands.evaluate", "imp_ds.commands.comparison.command",
    "imp_ds.cli", "imp_ds.recipes", "deepspeed.runtime.zero.muon.muon_optimizer", "setuptools", "torch.utils.tensorboard",
    "matplotlib.backends.backend_agg", "matplotlib.figure",
]  # fmt: skip


@dataclass
class Ended:
    """How the ranks ended: exit codes (-9 for one that was killed) and what each wrote to stdout and stderr, in rank order."""

    codes: list[int]
    outputs: list[str]
    seconds: float

    def __str__(self) -> str:
        parts = [f"rank {i}: exit {code}\n{text[-6000:]}" for i, (code, text) in enumerate(zip(self.codes, self.outputs))]
        return "\n".join(parts)


class Ranks:
    """Processes that run `function(*arguments)` as the ranks of one world.

    Args:
        function: of a module that can be imported; it finds its rank in the environment, as under a launcher.
        ranks: how many.
        folder: for what they print.
        environ: variables for them; `None` as a value takes one away.
    """

    def __init__(self, function: Callable, *arguments, ranks: int, folder: Path, environ: dict | None = None):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._logs = [folder / f"rank{rank}.log" for rank in range(ranks)]
        self._start = time.monotonic()
        server = _server()
        place = dict(WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
        self._processes = [
            # not daemons: loaders have children of their own
            server.Process(target=_enter, args=(place | _ranks(i) | (environ or {}), str(log), function, arguments))
            for i, log in enumerate(self._logs)
        ]
        for process in self._processes:
            process.start()

    def alive(self) -> bool:
        return any(process.is_alive() for process in self._processes)

    def output(self, rank: int = 0) -> str:
        """What it has printed so far."""
        return self._logs[rank].read_text(errors="replace") if self._logs[rank].exists() else ""

    def await_output(self, text: str, limit_s: float = 60) -> None:
        """Wait until rank 0 has printed it; AssertionError where it ends or takes longer."""
        deadline = time.monotonic() + limit_s
        while text not in self.output():
            assert self.alive() and time.monotonic() < deadline, self.output()
            time.sleep(0.01)

    def send(self, number: int) -> None:
        """A signal to each rank, and to nothing that it started."""
        for process in self._processes:
            os.kill(process.pid, number)

    def kill(self) -> None:
        """SIGKILL to all ranks and their children, which can do nothing about it."""
        for process in self._processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:  # it ended by itself, or has not made its group yet
                process.kill()

    def wait(self, limit_s: float = 60) -> Ended:
        """Wait for all ranks; AssertionError with what they printed when they take longer than `limit_s`."""
        deadline = time.monotonic() + limit_s
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
        late = self.alive()
        self.kill()
        for process in self._processes:
            process.join(10)
        outputs = [self.output(rank) for rank in range(len(self._logs))]
        ended = Ended([process.exitcode for process in self._processes], outputs, time.monotonic() - self._start)
        assert not late, f"still running after {limit_s} s\n{ended}"
        return ended


def run_ranks(
    function: Callable, *arguments, ranks: int, folder: Path, limit_s: float = 60, environ: dict | None = None
) -> Ended:
    """Run a function on `ranks` ranks and wait for them; AssertionError unless all of them end well."""
    ended = Ranks(function, *arguments, ranks=ranks, folder=folder, environ=environ).wait(limit_s)
    assert not any(ended.codes), str(ended)
    return ended


def end_well(worlds: Iterable[Ranks], limit_s: float = 60) -> None:
    """Wait for worlds that run side by side, which fills the time in which a rank waits for another; AssertionError unless all
    ranks of all of them end well within `limit_s`."""
    worlds, deadline = list(worlds), time.monotonic() + limit_s
    try:
        for world in worlds:
            ended = world.wait(max(0.0, deadline - time.monotonic()))
            assert not any(ended.codes), str(ended)
    finally:
        for world in worlds:
            world.kill()


def run_each_size(
    function: Callable, arguments: Callable[[int], tuple], make_folder: Callable[[str], Path], *, limit_s: float = 60,
    sizes: Iterable[int] = (1, 2),
) -> dict[int, Path]:  # fmt: skip
    """`function(folder, *arguments(ranks))` in worlds of so many ranks, side by side: {ranks: the folder that they wrote to}."""
    folders = {ranks: make_folder(f"ranks{ranks}") for ranks in sizes}
    end_well(
        (Ranks(function, str(folder), *arguments(ranks), ranks=ranks, folder=folder) for ranks, folder in folders.items()),
        limit_s,
    )
    return folders


def leave() -> NoReturn:
    """End a rank whose function made engines, when all ranks are done: a normal end of many engines sometimes aborts in their
    threads, after all is done."""
    import torch.distributed as dist

    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)


def run_layouts(function: Callable, layouts: Sequence, *arguments, folder: Path, limit_s: float) -> None:
    """`function(folder, *arguments, layouts of its size)` in a world of each size that layouts have in `.ranks`, side by side."""
    sizes = sorted({layout.ranks for layout in layouts})
    own = {ranks: [layout for layout in layouts if layout.ranks == ranks] for ranks in sizes}
    worlds = (Ranks(function, str(folder), *arguments, own[n], ranks=n, folder=folder / str(n)) for n in sizes)
    end_well(worlds, limit_s)


def command(*arguments: str) -> None:
    """`python -m imp_ds ARGUMENTS` in this process."""
    from imp_ds.cli import main

    sys.argv = ["imp_ds", *map(str, arguments)]
    main()


def _server():
    """The process to fork from, started at the first call: it runs nothing but the import, so it has no threads yet."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with mock.patch.dict(os.environ, environment(), clear=True):
        forkserver.ensure_running()
    return context


def _ranks(number: int) -> dict[str, str]:
    return dict(RANK=str(number), LOCAL_RANK=str(number))


def _enter(environ: dict, log: str, function: Callable, arguments: tuple) -> None:
    os.setsid()
    gc.freeze()  # a collection that looked through all that was imported would copy its memory
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    for name, value in environ.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    function(*arguments)
