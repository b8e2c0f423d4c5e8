"""One rank of tests/distributed/test_checkpoint_kill.py: find the newest checkpoint, go on from it, and save without a pause."""

import os
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from helpers.plain_engine import check_complete, fill, make_engine
from imp_ds.errors import UserError
from imp_ds.parallel.groups import is_main, rank
from imp_ds.train import checkpoint
from imp_ds.train.checkpoint import Writer, files

ELEMENTS = 400_000  # 4.8 MB of weights and moments: enough to be killed within a file


def _start(folder: str, **settings) -> tuple[Writer, int]:
    """A writer, and the step to go on from."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    path = checkpoint.newest(Path(folder), warn=lambda line: print(line, flush=True))
    step = check_complete(path) if path else 0
    dist.barrier()
    return Writer(make_engine(ELEMENTS), Path(folder), keep=2, **settings), step


def _save(writer: Writer, step: int) -> None:
    fill(writer.engine, step)
    writer.save(step, {"step": step})
    dist.barrier()  # a step of training


def save_until_killed(folder: str) -> None:
    """Rank 0 prints what is published, so that it can be asked for after the kill; both leave their process id."""
    writer, step = _start(folder)
    (Path(folder) / f"pid{rank()}").write_text(str(os.getpid()))
    while True:
        step += 1
        _save(writer, step)
        if step % 3 == 0:
            writer.wait()
            if is_main():
                print(f"published {step}", flush=True)


def save_once(folder: str) -> None:
    """The last start: goes on, saves, and leaves a tidy folder."""
    writer, step = _start(folder)
    _save(writer, step + 1)
    writer.wait()
    dist.destroy_process_group()


def fail_on_one_rank(folder: str) -> None:
    """Rank 1's disk is full for the second save, and cannot even report so for the third; training goes on each time."""
    writer, _ = _start(folder, timeout_s=20)
    _save(writer, 1)
    writer.wait()
    write, failed = files.write_safetensors, files.failure_path

    def full(path, *rest):
        path.write_bytes(bytes(10))
        raise OSError(28, "No space left on device")

    if rank() == 1:
        files.write_safetensors = full
    for step in (2, 3):
        if step == 3:
            writer.timeout_s = 1.0
            files.failure_path = lambda staging, own: Path("/dev/null/none")
        _save(writer, step)
        start = time.monotonic()
        try:
            writer.wait()
            print("saved", flush=True)
        except UserError as error:
            print(f"refused after {time.monotonic() - start:.0f} s: {error}", flush=True)
    files.write_safetensors, files.failure_path, writer.timeout_s = write, failed, 20.0
    _save(writer, 4)
    writer.wait()
    dist.destroy_process_group()
