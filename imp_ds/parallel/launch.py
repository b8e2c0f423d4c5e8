"""Finding out who we are under any launcher: deepspeed, torchrun, accelerate, srun, or none.

All of them but srun give it in RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; srun's variables are
translated, and a plain process is a world of one.
"""

import os
import re
import socket

from imp_ds.errors import UserError

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def first_host(nodelist: str) -> str:
    """The first host of a Slurm node list: "node[003-010,12]-ib,other" -> "node003-ib"."""
    entry = re.match(r"(?!\[)(?:[^,\[\]]|\[[^\]]*\])+", nodelist)
    if entry is None:
        raise UserError("Slurm's node list names no host", got=repr(nodelist), fix="set MASTER_ADDR by hand")
    return re.sub(r"\[([^\]]*)\]", lambda ranges: re.split(r"[,-]", ranges[1])[0], entry[0])


def free_port() -> int:
    """A TCP port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def init_environment(environ=os.environ) -> int:
    """Make the five variables complete, whatever started this process, and return the world size.

    Raises UserError when only some of them are set.
    """
    if "RANK" not in environ and "SLURM_PROCID" in environ and "SLURM_STEP_ID" in environ:
        environ["RANK"], environ["WORLD_SIZE"] = environ["SLURM_PROCID"], environ["SLURM_NTASKS"]
        environ["LOCAL_RANK"] = environ.get("SLURM_LOCALID", "0")
        nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "127.0.0.1")
        environ.setdefault("MASTER_ADDR", first_host(nodes))
        # every task of a job step derives the same port from the job's number, and two jobs on a node differ
        environ.setdefault("MASTER_PORT", str(20000 + int(environ.get("SLURM_JOB_ID", "0")) % 20000))
    if "RANK" not in environ and "WORLD_SIZE" not in environ:
        environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    environ.setdefault("LOCAL_RANK", "0")
    missing = [name for name in NAMES if not environ.get(name)]
    if missing:
        raise UserError(
            "the launcher left this process without a place among the ranks",
            got=f"{', '.join(missing)} not set",
            allowed="all of " + ", ".join(NAMES) + ", or none",
            fix="start with deepspeed, torchrun, accelerate launch or srun, or as a plain process",
        )
    return int(environ["WORLD_SIZE"])
