"""Processes that make the parts of a sequence, each its share, and each a few parts ahead of whoever takes them.

A worker knows its parts, and has a pipe of its own to send them through, so that neither side needs threads or queues: against
torch's DataLoader this saves the process that trains half of its work, and workers 3 to 5 % (benchmarks/results/loader.md).
"""

import multiprocessing
import os
import select
import signal
import traceback
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from multiprocessing.synchronize import Semaphore
from typing import NamedTuple

_LOOK_S = 5.0  # how often a waiting worker looks whether it is still wanted
_END_S = 5.0  # that a worker has for its end before it is killed


class WorkerLost(Exception):
    """A worker process has ended by itself."""


class _Worker(NamedTuple):
    """A process as the other side knows it: where what it makes comes in, what waits for that (milliseconds or None for ever ->
    something, when it is there), the count of parts that it may make."""

    process: BaseProcess
    connection: Connection
    poll: Callable[[float | None], list]
    asked: Semaphore


class WorkerPool:
    """Takes the parts, in order, from the processes that make them.

    Args:
        make: part -> what it is made into, which is pickled.
        parts: numbers of the parts.
        workers: processes, at least one.
        ahead: parts that each makes before it is asked for more.
        prepare: called in each process with its number, before anything else.
        dumps: pickles a message, (None, what was made) or (traceback, None), in the worker.
    """

    def __init__(
        self, make: Callable, parts: range, *, workers: int, ahead: int, prepare: Callable | None = None,
        dumps: Callable[[tuple], bytes] = ForkingPickler.dumps,
    ):  # fmt: skip
        context = multiprocessing.get_context(start_method())
        self._taken, self._parts, self._workers = 0, len(parts), []
        self.close = weakref.finalize(self, _end, os.getpid(), self._workers)
        for worker in range(workers):
            (connection, its_end), asked = context.Pipe(duplex=False), context.Semaphore(ahead)
            share = make, parts[worker::workers], worker, its_end, asked, prepare, dumps, os.getpid()
            process = context.Process(target=_work, args=share, daemon=True, name=f"worker {worker}")
            process.start()
            its_end.close()  # so that the pipe ends when the worker does
            self._workers.append(_Worker(process, connection, _poll(connection), asked))

    @property
    def pids(self) -> list[int]:
        return [worker.process.pid for worker in self._workers]

    def take(self, timeout_s: float | None = None):
        """The next part. Raises StopIteration after the last, TimeoutError, WorkerLost, and RuntimeError, with the worker's
        traceback, for what its making raises."""
        if self._taken == self._parts:
            raise StopIteration
        worker = self._workers[self._taken % len(self._workers)]
        try:
            if not worker.poll(None if timeout_s is None else timeout_s * 1000):
                raise TimeoutError(f"{worker.process.name} made nothing in {timeout_s:g} s")
            # of shared memory, only a handle comes, which a worker that died cannot give
            failure, made = worker.connection.recv()
        except TimeoutError:
            raise
        except (EOFError, OSError) as error:
            raise WorkerLost(_how_it_ended(worker.process)) from error
        worker.asked.release()
        self._taken += 1
        if failure is not None:
            raise RuntimeError(f"{worker.process.name} failed:\n{failure}")
        return made


def start_method() -> str | None:
    """fork where there is one: it starts at once, and shares what has been read; None for the system's own method."""
    return "fork" if "fork" in multiprocessing.get_all_start_methods() else None


def _work(
    make: Callable, parts: range, worker: int, connection: Connection, asked: Semaphore, prepare: Callable | None,
    dumps: Callable[[tuple], bytes], parent: int,
) -> None:  # fmt: skip
    if prepare is not None:
        prepare(worker)
    for part in parts:
        if not _wanted(asked, parent):
            return
        try:
            connection.send_bytes(dumps((None, make(part))))
        except BrokenPipeError:
            return
        except Exception:  # also of what cannot be pickled, of which nothing has been sent
            connection.send_bytes(dumps((traceback.format_exc(), None)))
    while _wanted(asked, parent):  # shared memory that was sent may not have been opened yet
        pass


def _poll(connection: Connection) -> Callable[[float | None], list]:
    """What waits for something to receive. `Connection.poll` makes a selector anew each time, which takes about as long as all
    else that is done to take a batch."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return poll.poll


def _wanted(asked: Semaphore, parent: int) -> bool:
    """Wait until one more is asked for. False when the process that takes them is gone."""
    while not asked.acquire(timeout=_LOOK_S):
        if os.getppid() != parent:
            return False
    return True


def _end(owner: int, workers: list[_Worker]) -> None:
    if os.getpid() != owner:  # a copy in a process that was forked
        return
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
