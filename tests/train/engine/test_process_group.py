"""Who leaves the process group when a run ends by an exception: whoever made it, where nobody waits for another rank."""

import os

import pytest
import torch.distributed as dist

from helpers.ranks import run_ranks
from imp_ds import get_recipe, train
from imp_ds.errors import UserError
from imp_ds.train.engine.engine import process_group, start_process_group


def test_a_refused_run_leaves_none(tmp_path, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    run = get_recipe("digits").override([f"data.root={tmp_path / 'missing'}"])
    for _ in range(2):  # so that a second one in this process is refused as the first was
        with pytest.raises(UserError, match="missing"):
            train(run, tmp_path / "run")
        assert not dist.is_initialized()
    start_process_group(60)
    try:
        with pytest.raises(UserError, match="missing"):
            train(run, tmp_path / "run")
        assert dist.is_initialized()  # it was the caller's
    finally:
        dist.destroy_process_group()


def _fail(shared: bool) -> None:
    try:
        with process_group(60, 60):
            dist.barrier()  # both have joined
            raise UserError("no", shared=shared)
    except UserError:
        print("left" if not dist.is_initialized() else "stayed", flush=True)
    os._exit(0)  # nobody is waited for


@pytest.mark.distributed
def test_ranks_leave_together_or_not_at_all(tmp_path):
    for shared, said in ((True, "left"), (False, "stayed")):
        ended = run_ranks(_fail, shared, ranks=2, folder=tmp_path / said)
        assert all(said in output for output in ended.outputs), str(ended)
