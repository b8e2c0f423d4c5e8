"""Ranks that do not start, before there is a process group or a watchdog: those that wait name them, in time."""

import os
import socket
import time

import pytest
import torch.distributed as dist

from helpers.ranks import Ranks
from imp_ds.errors import UserError
from imp_ds.parallel.roll_call import roll_call


def wait_for_missing(limit_s: float) -> None:
    """All but rank 1, which ends before it says that it is there."""
    if os.environ["RANK"] == "1":
        os._exit(9)
    start = time.monotonic()
    try:
        roll_call(limit_s)
    except UserError as error:
        print(f"{error}\nafter {time.monotonic() - start:.1f} s", flush=True)
        os._exit(2)


def join(limit_s: float) -> None:
    time.sleep(0.3 * int(os.environ["RANK"]))
    held = roll_call(limit_s)
    dist.init_process_group("gloo")  # at the same port
    del held
    dist.barrier()
    print("joined", flush=True)
    os._exit(0)


@pytest.mark.distributed
def test_a_rank_that_never_starts_is_named(tmp_path):
    end = Ranks(wait_for_missing, 2.0, ranks=3, folder=tmp_path).wait(30)
    assert end.codes == [2, 9, 2], str(end)
    assert "rank 1 did not start" in end.outputs[0] and "started: rank 0 (process " in end.outputs[0], str(end)
    assert "train.start_timeout_s" in end.outputs[0] and "did not start" in end.outputs[2]
    assert float(end.outputs[0].split("after ")[1].split()[0]) < 6  # 2 s, and 2 s more for the others


@pytest.mark.distributed
def test_ranks_that_start_one_after_the_other_join(tmp_path):
    end = Ranks(join, 20.0, ranks=3, folder=tmp_path).wait(30)
    assert end.codes == [0, 0, 0] and all("joined" in output for output in end.outputs), str(end)


def test_a_port_that_is_taken_is_said_with_what_gives_another(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for name, value in dict(RANK=0, WORLD_SIZE=2, MASTER_ADDR="127.0.0.1", MASTER_PORT=port).items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
        with pytest.raises(UserError, match=rf"port(.|\n)*is taken(.|\n)*127.0.0.1:{port}\n(.|\n)*--master_port N"):
            roll_call(5.0)
