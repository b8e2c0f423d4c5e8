"""One sequence of keys: whatever the number of ranks and workers, and wherever the ranks are killed and started again."""

import json
import multiprocessing
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.broken_corpus import loader, write_media, write_shards

STEPS, WINDOW, LIMIT_S = 48, 16, 60
# after each kill the run goes on with other numbers of ranks and of workers
LAYOUTS = [(1, 0), (2, 1), (4, 0), (1, 3), (2, 3), (4, 1)]
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("order")
    write_shards(root / "shards")
    write_media(root / "media" / "train")
    return root


def iterate(root, out: Path, rank: int, world: int, begin: int, workers: int) -> None:
    """A rank: write each step's keys, a line each, as they come."""
    os.setsid()
    torch.set_num_threads(1)
    with open(out, "a") as file:
        batches = loader(root, STEPS, workers, rank, world, WINDOW)
        batches.step = begin
        for step, batch in enumerate(batches, begin):
            file.write(json.dumps([step, batch.report.keys]) + "\n")
            file.flush()


def lines(out: Path) -> list:
    """What a rank has written; a line that a kill cut is none."""
    return [json.loads(line) for line in out.read_text().split("\n")[:-1]] if out.exists() else []


def kill(processes) -> None:
    for process in processes:
        with suppress(ProcessLookupError):  # it was through
            os.killpg(process.pid, signal.SIGKILL)  # with its workers
        process.join(LIMIT_S)
        assert process.exitcode is not None


def test_one_sequence_of_keys(root, tmp_path):
    expected = [list(batch.report.keys) for batch in loader(root, STEPS, window=WINDOW)]
    assert len({key for keys in expected for key in keys}) == 102  # several epochs of all that is usable
    rng, begin, found = np.random.default_rng(0), 0, []
    for number, (world, workers) in enumerate(LAYOUTS):
        stop = STEPS if number == len(LAYOUTS) - 1 else begin + int(rng.integers(2, 9))
        outs = [tmp_path / f"{number}.{rank}" for rank in range(world)]
        processes = [
            FORK.Process(target=iterate, args=(root, out, rank, world, begin, workers)) for rank, out in enumerate(outs)
        ]
        for process in processes:
            process.start()
        deadline = time.monotonic() + LIMIT_S
        while any(len(lines(out)) < stop - begin for out in outs):
            assert time.monotonic() < deadline and not any(process.exitcode for process in processes)
            time.sleep(0.01)
        kill(processes)
        for step in range(begin, stop):
            parts = [lines(out)[step - begin] for out in outs]
            assert [part[0] for part in parts] == [step] * world
            found.append([key for _, keys in parts for key in keys])
        begin = stop
    assert found == expected
