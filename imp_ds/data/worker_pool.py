"""Processes that make the parts of a sequence, each its share, and each a few parts ahead of whoever takes them.

A worker knows its parts, and has a pipe of its own to send them through, so that neither side needs threads or queues: against
torch's DataLoader this saves the process that trains half of its work, and workers 3 to 5 % (benchmarks/results/loader.md).
"""

import multiprocessing
import os
import signal
import traceback
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection

_LOOK_S = 5.0  # how often a waiting worker looks whether it is still wanted
_END_S = 5.0  # that a worker has for its end before it is killed


class WorkerLost(Exception):
    """A worker process has ended by itself."""


class WorkerPool:
    """Takes the parts, in order, from the processes that make them.

    Args:
        make: part -> what it is made into, which is pickled.
        parts: numbers of the parts.
        workers: processes, at least one.
        ahead: parts that each makes before it is asked for more.
        prepare: called in each process with its number, before anything else.
    """

    def __init__(self, make: Callable, parts: range, *, workers: int, ahead: int, prepare: Callable | None = None):
        context = multiprocessing.get_context(start_method())
        self._taken, self._parts, self._connections, self._processes, self._asked = 0, len(parts), [], [], []
        self.close = weakref.finalize(self, _end, os.getpid(), self._processes, self._connections)
        for worker in range(workers):
            (connection, its_end), asked = context.Pipe(duplex=False), context.Semaphore(ahead)
            share = make, parts[worker::workers], worker, its_end, asked, prepare, os.getpid()
            process = context.Process(target=_work, args=share, daemon=True, name=f"worker {worker}")
            process.start()
            its_end.close()  # so that the pipe ends when the worker does
            self._connections.append(connection)
            self._processes.append(process)
            self._asked.append(asked)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def take(self, timeout_s: float | None = None):
        """The next part. Raises StopIteration after the last, TimeoutError, WorkerLost, and RuntimeError, with the worker's
        traceback, for what its making raises."""
        if self._taken == self._parts:
            raise StopIteration
        worker = self._taken % len(self._connections)
        connection = self._connections[worker]
        try:
            if not connection.poll(timeout_s):
                raise TimeoutError(f"{self._processes[worker].name} made nothing in {timeout_s:g} s")
            failure, made = connection.recv()  # of shared memory, only a handle comes, which a worker that died cannot give
        except TimeoutError:
            raise
        except (EOFError, OSError) as error:
            raise WorkerLost(_how_it_ended(self._processes[worker])) from error
        self._asked[worker].release()
        self._taken += 1
        if failure is not None:
            raise RuntimeError(f"{self._processes[worker].name} failed:\n{failure}")
        return made


def start_method() -> str | None:
    """fork where there is one: it starts at once, and shares what has been read; None for the system's own method."""
    return "fork" if "fork" in multiprocessing.get_all_start_methods() else None


def _work(
    make: Callable, parts: range, worker: int, connection: Connection, asked, prepare: Callable | None, parent: int
) -> None:
    if prepare is not None:
        prepare(worker)
    for part in parts:
        if not _wanted(asked, parent):
            return
        try:
            connection.send((None, make(part)))
        except BrokenPipeError:
            return
        except Exception:  # also of what cannot be pickled, of which nothing has been sent
            connection.send((traceback.format_exc(), None))
    while _wanted(asked, parent):  # shared memory that was sent may not have been opened yet
        pass


def _wanted(asked, parent: int) -> bool:
    """Wait until one more is asked for. False when the process that takes them is gone."""
    while not asked.acquire(timeout=_LOOK_S):
        if os.getppid() != parent:
            return False
    return True


def _end(owner: int, processes: list, connections: list[Connection]) -> None:
    if os.getpid() != owner:  # a copy in a process that was forked
        return
    for connection in connections:
        connection.close()
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_END_S)
        if process.exitcode is None:
            process.kill()
            process.join()


def _how_it_ended(process) -> str:
    process.join(_END_S)
    code = process.exitcode
    if code is None:
        return f"{process.name} closed its pipe"
    how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return f"{process.name} exited unexpectedly, {how}"
