"""Before ranks join: who has started, and who is missing when the time is up.

The process group's own rendezvous waits as long as its collectives may, and names nobody.
"""

import os
import socket
import time
from datetime import timedelta

import torch.distributed as dist

from imp_ds.errors import UserError

_POLL_S = 0.1
_SHOWN = 8  # ranks in a message
_LOG_S = 30.0  # after so long the missing ranks are logged
_LINGER_S = 2.0  # rank 0 holds the list: it leaves last
_FIX = "the output of a missing rank shows why it ended, if it was started at all; --set train.start_timeout_s=... waits longer"


def roll_call(timeout_s: float) -> object:
    """Wait until all ranks have started; what it returns has to be kept until they have joined.

    Raises UserError, on every rank that has started, naming those that have not within `timeout_s`.
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if world == 1:
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    deadline = time.monotonic() + timeout_s
    try:
        store = _store(host, port, rank, timeout_s)
        name = f"imp_ds/start/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/"
        store.set(f"{name}{rank}", f"process {os.getpid()} on {socket.gethostname()}")
        _await(store, name, world, rank, deadline)
    except (dist.DistError, OSError) as error:
        if rank == 0 and "EADDRINUSE" in str(error):
            raise UserError(
                "the port at which the ranks meet is taken, by another run or another program", got=f"{host}:{port}",
                allowed="a port that nothing listens on",
                fix="give the launcher another: deepspeed --master_port N, torchrun --master_port N; else MASTER_PORT=N",
            ) from None  # fmt: skip
        raise UserError(
            "rank 0 did not start, or ended while the others were starting", got=f"{host}:{port}: {str(error).splitlines()[0]}",
            allowed=f"{timeout_s:g} s (train.start_timeout_s)", fix=_FIX,
        ) from None  # fmt: skip
    return store


def _store(host: str, port: int, rank: int, timeout_s: float) -> dist.TCPStore:
    """The list of those who are there: torchrun's agent holds one, else rank 0 does, in the server of the process group."""
    held = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return dist.TCPStore(
        host, port, None, rank == 0 and not held, timedelta(seconds=timeout_s), wait_for_workers=False, multi_tenant=True
    )


def _await(store: dist.TCPStore, name: str, world: int, rank: int, deadline: float) -> None:
    missing, began, logged = list(range(world)), time.monotonic(), False
    while missing := [one for one in missing if not store.check([f"{name}{one}"])]:
        now = time.monotonic()
        if now > deadline:
            there = [one for one in range(world) if one not in missing]
            locations = ", ".join(f"rank {one} ({store.get(f'{name}{one}').decode()})" for one in there[:_SHOWN])
            if rank == 0:
                time.sleep(_LINGER_S)
            raise UserError(
                f"{ranks_in_words(missing)} did not start",
                got=f"started: {locations}" + (" ..." if len(there) > _SHOWN else ""),
                allowed=f"{now - began:.0f} s (train.start_timeout_s)", fix=_FIX,
            )  # fmt: skip
        if rank == 0 and now > began + _LOG_S and not logged:
            logged = True
            print(f"waiting for {ranks_in_words(missing)} to start", flush=True)
        time.sleep(_POLL_S)


def ranks_in_words(ranks: list[int]) -> str:
    """For messages: "rank 3", "ranks 1, 2"; of many the first ones."""
    more = f" and {len(ranks) - _SHOWN} more" if len(ranks) > _SHOWN else ""
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks[:_SHOWN])) + more
