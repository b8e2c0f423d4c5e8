"""The pool of workers: parts in order, no further ahead than asked, and no failure that hangs or is not reported."""

import gc
import multiprocessing
import os
import signal
import time

import pytest
import torch

from helpers.ranks import Ranks
from imp_ds.data.loading import worker_pool
from imp_ds.data.loading.worker_pool import WorkerLost, WorkerPool

TIMEOUT_S = 30


def until(happened, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def living(pids):
    return [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("ahead", [1, 4])
def test_parts_come_in_order_from_whoever_makes_them(workers, ahead):
    pool = WorkerPool(lambda part: (part, os.getpid()), range(5, 70, 5), workers=workers, ahead=ahead)
    found = [pool.take(TIMEOUT_S) for _ in range(13)]
    assert [part for part, _ in found] == list(range(5, 70, 5))
    assert {pid for _, pid in found} <= set(pool.pids)
    with pytest.raises(StopIteration):
        pool.take(TIMEOUT_S)


def test_a_slow_part_keeps_no_other_worker_waiting():
    """Of 8 parts in all, the first takes 2 s: its worker makes it alone, the other the seven that may be made ahead."""
    pool = WorkerPool(lambda part: time.sleep(2.0 * (part == 0)) or os.getpid(), range(8), workers=2, ahead=4)
    slow, *others = (pool.take(TIMEOUT_S) for _ in range(8))
    assert {slow, others[0]} == set(pool.pids) and len(set(others)) == 1


def test_nothing_is_made_further_ahead_than_asked():
    made = multiprocessing.get_context("fork").Value("i", 0)

    def make(part):
        with made.get_lock():
            made.value += 1

    pool = WorkerPool(make, range(100), workers=2, ahead=3)
    for taken in range(4):
        until(lambda: made.value >= 6 + taken)  # 3 for each worker, and one for each that was taken
        time.sleep(0.2)
        assert made.value == 6 + taken
        pool.take(TIMEOUT_S)


def test_each_worker_is_prepared_with_its_number():
    seen = []
    pool = WorkerPool(lambda part: (os.getpid(), list(seen)), range(4), workers=2, ahead=1, prepare=seen.append)
    found = [pool.take(TIMEOUT_S) for _ in range(4)]
    assert all(numbers == [pool.pids.index(pid)] for pid, numbers in found) and seen == []


@pytest.mark.parametrize("what, reported", [
    (lambda: 1 / 0, "ZeroDivisionError"), (lambda: open, None), (lambda: lambda: 0, "pickle"),
], ids=["raises", "can be sent", "cannot be sent"])  # fmt: skip
def test_what_fails_in_a_worker_is_reported_with_its_traceback(what, reported):
    pool = WorkerPool(lambda part: what() if part == 1 else part, range(4), workers=1, ahead=2)
    assert pool.take(TIMEOUT_S) == 0
    if reported is None:
        assert pool.take(TIMEOUT_S) is open
    else:
        with pytest.raises(RuntimeError, match=rf"(?s)worker 0 failed:.*test_worker_pool.py|{reported}") as error:
            pool.take(TIMEOUT_S)
        assert reported in str(error.value)
    assert pool.take(TIMEOUT_S) == 2  # it goes on


@pytest.mark.parametrize("end, how", [
    (lambda: os.kill(os.getpid(), signal.SIGKILL), "by signal SIGKILL"), (lambda: os._exit(3), "with exit code 3"),
], ids=["killed", "exits"])  # fmt: skip
def test_a_worker_that_ends_is_reported_with_its_part(end, how):
    pool = WorkerPool(lambda part: end() if part == 50 else part, range(48, 60), workers=2, ahead=1)
    start, found = time.monotonic(), []
    with pytest.raises(WorkerLost, match=f"worker [01] exited unexpectedly, {how}") as error:
        found += (pool.take(TIMEOUT_S) for _ in range(3))
    assert found == list(range(48, 48 + len(found))) and error.value.part == 50
    assert time.monotonic() - start < 20


def test_a_worker_that_ends_before_its_first_part_is_reported():
    pool = WorkerPool(lambda part: part, range(7, 9), workers=1, ahead=1, prepare=lambda number: os._exit(4))
    with pytest.raises(WorkerLost, match="worker 0 exited unexpectedly, with exit code 4") as error:
        pool.take(TIMEOUT_S)
    assert error.value.part == 7


def test_a_worker_that_ends_after_its_last_part_is_reported():
    idle = multiprocessing.get_context("fork").Value("q", 0)

    def make(part):
        if part == 8:
            idle.value = os.getpid()  # it waits from now on, for there is no third part
        return part if part == 8 else time.sleep(60)

    pool = WorkerPool(make, range(7, 9), workers=2, ahead=2)
    until(lambda: idle.value)
    time.sleep(0.5)
    os.kill(idle.value, signal.SIGKILL)
    with pytest.raises(WorkerLost, match="by signal SIGKILL") as error:
        pool.take(TIMEOUT_S)
    assert error.value.part == 7
    pool.close()


def test_a_wait_has_an_end_and_may_be_taken_up_again():
    pool = WorkerPool(lambda part: time.sleep(1.0) or part, range(2), workers=1, ahead=1)
    with pytest.raises(TimeoutError, match="worker 0 made nothing in 0.1 s"):
        pool.take(0.1)
    assert [pool.take(TIMEOUT_S) for _ in range(2)] == [0, 1]


def test_shared_memory_outlives_the_last_part_of_its_worker():
    pool = WorkerPool(lambda part: torch.full((10,), part).share_memory_(), range(4), workers=2, ahead=2)
    time.sleep(0.5)  # both have made all their parts
    assert [pool.take(TIMEOUT_S).tolist() for _ in range(4)] == [[part] * 10 for part in range(4)]


@pytest.mark.parametrize("how", ["closed", "forgotten"])
def test_workers_end_with_the_pool(how):
    pool = WorkerPool(lambda part: time.sleep(60), range(4), workers=2, ahead=2)
    pids = pool.pids
    assert living(pids) == pids
    if how == "closed":
        pool.close()
    del pool
    gc.collect()
    until(lambda: not living(pids))


def test_a_copy_in_another_process_ends_nobody():
    pool = WorkerPool(lambda part: part, range(4), workers=1, ahead=1)
    copy = multiprocessing.get_context("fork").Process(target=pool.close)
    copy.start()
    copy.join(20)
    assert copy.exitcode == 0 and living(pool.pids) == pool.pids and pool.take(TIMEOUT_S) == 0


def take_and_die() -> None:
    worker_pool._LOOK_S = 0.2
    pool = WorkerPool(lambda part: part, range(100), workers=3, ahead=1)
    pool.take(20)
    print(*pool.pids, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def test_workers_end_when_whoever_takes_is_killed(tmp_path):
    """None of them waits for ever, though each holds the pipes of those that were started before it."""
    one = Ranks(take_and_die, ranks=1, folder=tmp_path)
    until(lambda: not one.alive())
    pids = [int(pid) for pid in one.output().split()]
    assert len(pids) == 3
    until(lambda: not living(pids))
    assert one.wait(5).codes == [-signal.SIGKILL]
