"""Processes that make the parts of a sequence: each the next one that nobody has begun, all of them a few parts ahead of what
takes the parts in order.

So a worker that is slow, or whose part is, keeps no other waiting. The workers share the number of the next part, and each has a
pipe of its own to send through: neither side needs threads or queues. Against torch's DataLoader this saves the process that
trains half of its work (benchmarks/results/loader.md).
"""

import multiprocessing
import os
import select
import signal
import time
import traceback
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Semaphore
from typing import NamedTuple

_LOOK_S = 5.0  # how often a waiting worker looks whether it is still wanted
_NOTHING = -1  # the position of no part
_END_S = 5.0  # that a worker has for its end before it is killed


class WorkerLost(Exception):
    """A worker process has ended by itself. `part` is the one that it began last, or, where it had none to make, the one that
    was waited for."""

    def __init__(self, how: str, part: int):
        super().__init__(how)
        self.part = part


class _Worker(NamedTuple):
    number: int
    process: BaseProcess
    connection: Connection


class _Shared(NamedTuple):
    """What the workers share: how many parts may still be begun, the position of the next part, and of the one that each of them
    has begun last."""

    asked: Semaphore
    next: Synchronized
    begun: Sequence[int]


class WorkerPool:
    """Takes the parts, in order, from the processes that make them.

    Args:
        make: part -> what it is made into, which is pickled.
        parts: numbers of the parts.
        workers: processes, at least one.
        ahead: parts for each worker that all together make before they are asked for more.
        prepare: called in each process with its number, before anything else.
        dumps: pickles a message, (position of the part, None, what was made) or (position, traceback, None), in the worker.
    """

    def __init__(
        self, make: Callable, parts: range, *, workers: int, ahead: int, prepare: Callable | None = None,
        dumps: Callable[[tuple], bytes] = ForkingPickler.dumps,
    ):  # fmt: skip
        context = multiprocessing.get_context(start_method())
        self._parts, self._taken, self._made, self._workers, self._poll = parts, 0, {}, {}, select.poll()
        begun = context.RawArray("q", [_NOTHING] * workers)
        self._shared = _Shared(context.Semaphore(workers * ahead), context.Value("q", 0), begun)
        self.close = weakref.finalize(self, _end, os.getpid(), self._workers)
        for number in range(workers):
            connection, its_end = context.Pipe(duplex=False)
            share = make, parts, self._shared, number, its_end, prepare, dumps, os.getpid()
            process = context.Process(target=_work, args=share, daemon=True, name=f"worker {number}")
            process.start()
            its_end.close()  # so that the pipe ends when the worker does
            self._workers[connection.fileno()] = _Worker(number, process, connection)
            self._poll.register(connection.fileno(), select.POLLIN)

    @property
    def pids(self) -> list[int]:
        return [worker.process.pid for worker in self._workers.values()]

    def take(self, timeout_s: float | None = None):
        """The next part. Raises StopIteration after the last, TimeoutError, WorkerLost, and RuntimeError, with the worker's
        traceback, for what its making raises."""
        if self._taken == len(self._parts):
            raise StopIteration
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while self._taken not in self._made:
            ready = self._poll.poll(None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000)
            if not ready:
                raise TimeoutError(f"{self._maker()} made nothing in {timeout_s:g} s")
            for descriptor, _ in ready:
                self._receive(self._workers[descriptor])
        worker, failure, made = self._made.pop(self._taken)
        self._shared.asked.release()
        self._taken += 1
        if failure is not None:
            raise RuntimeError(f"{worker.process.name} failed:\n{failure}")
        return made

    def _receive(self, worker: _Worker) -> None:
        try:
            # of shared memory, only a handle comes, which a worker that died cannot give
            position, failure, made = worker.connection.recv()
        except (EOFError, OSError) as error:
            begun = self._shared.begun[worker.number]
            # another number: it had not begun its first, or had made its last
            position = begun if begun in range(len(self._parts)) else self._taken
            raise WorkerLost(_how_it_ended(worker.process), self._parts[position]) from error
        self._made[position] = worker, failure, made

    def _maker(self) -> str:
        """Who makes the part that is taken next."""
        makers = dict(zip(self._shared.begun, self._workers.values()))
        return makers[self._taken].process.name if self._taken in makers else "the workers"


def start_method() -> str | None:
    """fork where there is one: it starts at once, and shares what has been read; None for the system's own method."""
    return "fork" if "fork" in multiprocessing.get_all_start_methods() else None


def _work(
    make: Callable, parts: range, shared: _Shared, worker: int, connection: Connection, prepare: Callable | None,
    dumps: Callable[[tuple], bytes], parent: int,
) -> None:  # fmt: skip
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that takes the parts, which then ends its workers
    if prepare is not None:
        prepare(worker)
    while (position := _begin(shared, worker, parent)) is not None and position < len(parts):
        try:
            connection.send_bytes(dumps((position, None, make(parts[position]))))
        except BrokenPipeError:
            return
        except Exception:  # also of what cannot be pickled, of which nothing has been sent
            connection.send_bytes(dumps((position, traceback.format_exc(), None)))
    while _wanted(shared.asked, parent):  # shared memory that was sent may not have been opened yet
        pass


def _begin(shared: _Shared, worker: int, parent: int) -> int | None:
    """The position of the next part, once one is asked for; None when the process that takes them is gone."""
    if not _wanted(shared.asked, parent):
        return None
    with shared.next.get_lock():
        position = shared.begun[worker] = shared.next.value
        shared.next.value += 1
    return position


def _wanted(asked: Semaphore, parent: int) -> bool:
    """Wait until one more is asked for. False when the process that takes them is gone."""
    while not asked.acquire(timeout=_LOOK_S):
        if os.getppid() != parent:
            return False
    return True


def _end(owner: int, by_descriptor: dict[int, _Worker]) -> None:
    if os.getpid() != owner:  # a copy in a process that was forked
        return
    workers = by_descriptor.values()
    for worker in workers:
        worker.connection.close()
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        worker.process.join(_END_S)
        if worker.process.exitcode is None:
            worker.process.kill()
            worker.process.join()


def _how_it_ended(process: BaseProcess) -> str:
    process.join(_END_S)
    code = process.exitcode
    if code is None:
        return f"{process.name} closed its pipe"
    how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return f"{process.name} exited unexpectedly, {how}"
