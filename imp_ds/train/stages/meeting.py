"""Where the ranks of a recipe of several stages meet between two stages: in the store that their launcher's address is of.

While a stage is trained there is a process group, in processes of its own; between stages there is none. Every wait has a time
limit, and names the ranks that it was for.
"""

import json
import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist

from imp_ds.errors import UserError
from imp_ds.parallel.roll_call import ranks_in_words, roll_call

_POLL_S = 0.1
_LEAVE_S = 5.0  # rank 0 holds the store: it waits so long for the others to leave


class Meeting:
    """Of all ranks that a launcher started; one process alone meets nobody.

    timeout_s: so long may a rank take to start. Raises UserError, naming those that have not.
    """

    def __init__(self, timeout_s: float):
        self.rank, self.world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self._store = roll_call(timeout_s)

    def tell(self, name: str, value: object) -> None:
        """Let the others find this rank's value under a name, which is used once."""
        if self._store is not None:
            self._store.set(_key(name, self.rank), json.dumps(value))

    def gather(self, name: str, value: object, limit_s: float) -> list:
        """The value of each rank under that name, in the order of the ranks. All of them call it.

        Raises UserError, naming those that have not come in time.
        """
        if self._store is None:
            return [value]
        try:
            self.tell(name, value)
            self._await(name, list(range(self.world)), limit_s)
            return [json.loads(self._store.get(_key(name, rank))) for rank in range(self.world)]
        except (dist.DistError, OSError) as error:
            raise UserError("rank 0 has ended", got=str(error).partition("\n")[0], fix="its output shows why") from None

    def share(self, name: str, function: Callable[[], object], limit_s: float):
        """What `function` gives on rank 0, as JSON has it; a UserError there is raised on all ranks."""
        found = None
        if self.rank == 0:
            try:
                found = {"value": function()}
            except UserError as error:
                found = {"error": str(error)}
        found = self.gather(name, found, limit_s)[0]
        if "error" in found:
            raise UserError(found["error"], shared=True)
        return found["value"]

    def address(self) -> str:
        """Where the others reach this machine."""
        master = os.environ["MASTER_ADDR"]
        if self.rank == 0:
            return master
        with socket.socket(socket.AF_INET6 if ":" in master else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((master, int(os.environ["MASTER_PORT"])))  # sends nothing: it only chooses the way there
            return probe.getsockname()[0]

    def leave(self) -> None:
        """To be called last. Rank 0 waits a little for the others, who may be reading."""
        if self._store is None:
            return
        try:
            self.tell("left", None)
            if self.rank == 0:
                self._await("left", list(range(self.world)), _LEAVE_S)
        except (UserError, dist.DistError, OSError):
            pass

    def _await(self, name: str, missing: list[int], limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        while missing := [rank for rank in missing if not self._store.check([_key(name, rank)])]:
            if time.monotonic() > deadline:
                raise UserError(
                    f"{ranks_in_words(missing)} did not come to where the others are", got=f"waiting for: {name}",
                    allowed=f"{limit_s:.0f} s (train.hang_timeout_s)", fix="the output of a missing rank shows why",
                )  # fmt: skip
            time.sleep(_POLL_S)


def open_store(address: str) -> dist.TCPStore:
    """A store of its own for the ranks of one stage, on a free port of this machine, for as long as it is held."""
    return dist.TCPStore(address, 0, None, True, timedelta(seconds=60), wait_for_workers=False)


def _key(name: str, rank: int) -> str:
    return f"imp_ds/stages/{name}/{rank}"
