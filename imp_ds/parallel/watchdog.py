"""A rank that dies or hangs ends the others, with one message that names it.

A thread of every rank reports to rank 0's, over a TCP connection of its own, where its training is: step, phase, since
when, at which line, and whether it waits in a collective operation. Rank 0 diagnoses (diagnosis.py), logs the diagnosis once, and
sends it to all; then every rank ends. The kernel closes the connection of a process the moment it is gone, wherever it runs,
so a death is known at once and for certain; for all else (stopped, cut off, hanging) there is one bound, `timeout_s`. A rank
that is only silent may be busy in a library that lets no other thread run: it has as long as its phase may take. The
process group cannot serve for this: the rank that hangs is the one that does not answer there.

    with Watchdog(timeout_s) as watchdog:
        while ...:
            watchdog.progress(step, "training")
"""

import os
import secrets
import selectors
import socket
import sys
import threading
import time
import traceback

import torch.distributed as dist

from imp_ds.errors import UserError
from imp_ds.parallel.connection import Connection, listen
from imp_ds.parallel.diagnosis import (
    Diagnosis,
    RankStatus,
    diagnose_broken,
    diagnose_events,
    diagnose_stillness,
    died,
    hanging,
    is_effect,
)
from imp_ds.parallel.groups import on_main, rank, world_size
from imp_ds.parallel.stack import look_at

EXIT_CODE = 1
_CONNECT_S = 60.0  # until all ranks have a connection
_GRACE_S = 0.5  # between the first sign of an end and the diagnosis: the cause may arrive after its effects
_BROKEN_S = 10.0  # the same while all that is known is that connections broke
_LINGER_S = 2.0  # for the last message
_LOOK_S = 1.0  # without progress before it is looked where training is (`imp_ds.parallel.stack`)
_LOG_WAIT_S = 10.0  # a wait for a lock or a compiler is logged after so long
_WAITING = ("/torch/distributed/", "/deepspeed/comm/", "/imp_ds/parallel/")  # code in which one waits for other ranks
_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep


class Watchdog:
    """Watches the ranks of the process group from `with` to its end; all ranks enter, and leave.

    Args:
        timeout_s: how long training may stand still in a phase that asks for no more, and a machine be cut off.
        start_timeout_s: the same before training: a model is built, a checkpoint is read.
        interval_s: between two reports of a rank.

    An exception that leaves the block is reported. On the rank that is to blame it goes on as ever. On the others, where it
    is an effect ("Connection closed by peer"), no traceback is shown: they end with exit code 1 and the one message. One
    with an attribute `shared` that is true is raised by all ranks, and no rank's fault.

    Entering raises UserError, on every rank, when a rank cannot reach rank 0.
    """

    def __init__(self, timeout_s: float, *, start_timeout_s: float = 1800.0, interval_s: float = 1.0):
        self.timeout_s, self.start_timeout_s, self.interval_s = timeout_s, start_timeout_s, interval_s
        self._quiet_s = 10 * interval_s
        self._look_s = min(_LOOK_S, timeout_s / 4)
        self._clock, self._ran = 0.0, time.monotonic()
        self._failure, self._effect, self._is_user_error, self._done = None, False, False, False
        self._diagnosed = threading.Event()
        self._connections: dict[int, Connection] = {}  # of rank 0: rank -> its connection; of another: 0 -> rank 0's
        self._logged_wait = None  # the wait that was logged last
        self.progress(0, "starting")

    def progress(self, step: int, phase: str, *, at_least_s: float = 0.0) -> None:
        """Report that training goes on: `step` steps are done, and the phase may take timeout_s, or `at_least_s` if longer.
        Before training, a phase that begins with "starting" may take start_timeout_s."""
        allowed_s = self.start_timeout_s if phase.startswith("starting") else self.timeout_s
        self._progress = step, phase, max(allowed_s, at_least_s), self._clock

    def __enter__(self) -> "Watchdog":
        self._main = threading.get_ident()
        server = listen(world_size()) if rank() == 0 and world_size() > 1 else None
        token = secrets.token_hex(16)  # the port is open to all; only our ranks know this
        mine = socket.gethostname(), os.getpid(), server and server.getsockname()[1], token
        locations = [mine]
        if world_size() > 1:
            locations = [None] * world_size()
            dist.all_gather_object(locations, mine)
        self._statuses = [RankStatus(i, host=location[0], pid=location[1]) for i, location in enumerate(locations)]
        self._last_report = [0.0] * len(locations)  # of each rank, by our clock
        _, _, port, token = locations[0]
        on_main(lambda: self._connect(server, port, token), "the ranks cannot watch each other", every_rank=True)
        os.register_at_fork(after_in_child=self._close)  # a loader's process would keep our connections open after our death
        self._thread = threading.Thread(target=self._lead if rank() == 0 else self._follow, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        if error is None or getattr(error, "shared", False):
            self._done = True
            self._thread.join(_LINGER_S + 2 * self.interval_s)
            return
        if world_size() > 1:
            self._effect, self._is_user_error = is_effect(error), isinstance(error, UserError)
            self._failure = " ".join(f"{kind.__name__}: {error}".split())[:300]
            # the thread ends this process if another rank is to blame; the wait is for the time that takes
            self._diagnosed.wait((_BROKEN_S if self._effect else _GRACE_S) + _LINGER_S + 5 * self.interval_s)

    def _connect(self, server: socket.socket | None, port: int, token: str) -> None:
        """Rank 0 accepts all other ranks; they know the token."""
        if rank() > 0:
            connection = Connection(socket.create_connection((os.environ["MASTER_ADDR"], port), _CONNECT_S), self.timeout_s)
            connection.send({"token": token, "rank": rank()})
            self._connections[0] = connection
        elif server is not None:
            deadline = time.monotonic() + _CONNECT_S
            while len(self._connections) < world_size() - 1:
                server.settimeout(max(0.01, deadline - time.monotonic()))
                connection = Connection(server.accept()[0], self.timeout_s)
                hello = connection.receive_one()
                if hello is not None and secrets.compare_digest(str(hello.get("token")), token):
                    self._connections[hello["rank"]] = connection
                else:
                    connection.socket.close()
            server.close()

    def _close(self) -> None:
        for connection in self._connections.values():
            connection.socket.close()

    def _tick(self) -> None:
        """Our clock stands still while this process does: after a pause of all ranks nobody is late."""
        now = time.monotonic()
        self._clock += min(now - self._ran, self.interval_s)
        self._ran = now

    def _report(self) -> dict:
        """Where our main thread stands."""
        step, phase, allowed_s, since = self._progress
        still_s, location = self._clock - since, ""
        stack, waits = look_at(self._main) if still_s > self._look_s else ([], None)
        if stack:
            location = str(next((place for place in stack if place.path.startswith(_PACKAGE)), stack[0]))
            if waits != self._logged_wait and (waits is None or self._clock - since > _LOG_WAIT_S):
                self._logged_wait = waits
                if waits is not None:
                    _log(f"rank {rank()} waits for {waits}\n")
            location += f", waits for {waits}" if waits else ""
        return dict(
            step=step, phase=phase, allowed_s=allowed_s, still_s=still_s, location=location, failure=self._failure,
            effect=self._effect, is_user_error=self._is_user_error, done=self._done,
            waiting=any(part in stack[0].path for part in _WAITING) if stack else False,
        )  # fmt: skip

    def _update(self, number: int, report: dict) -> None:
        for name, value in report.items():
            setattr(self._statuses[number], name, value)
        self._last_report[number] = self._clock

    def _lead(self) -> None:
        """Rank 0: receive from all, diagnose, and send the diagnosis to all."""
        selector = selectors.DefaultSelector()
        for number, connection in self._connections.items():
            selector.register(connection.socket, selectors.EVENT_READ, number)
        events: dict[int, float] = {}  # rank -> when it died or failed, in the order of arrival
        beat = 0.0
        while not self._done:
            ready = selector.select(self.interval_s / 5)
            self._tick()
            for key, _ in ready:
                if not self._receive(key.data):
                    selector.unregister(key.fileobj)
            self._update(0, self._report())
            for status in self._statuses:
                status.silent_s = self._clock - self._last_report[status.rank]
                if status.gone or status.failure is not None:
                    events.setdefault(status.rank, self._clock)
            if any(status.blames for status in self._statuses):  # we were stopped, and go on now: all has been logged
                return self._leave([0], failed=False)
            diagnosis = self._diagnose(events)
            if diagnosis is not None:
                return self._report_diagnosis(diagnosis)
            if self._clock >= beat:
                beat = self._clock + self.interval_s
                for connection in self._connections.values():
                    connection.send({"report": self._report()})
        self._dismiss({"end": True})

    def _receive(self, number: int) -> bool:
        """Read a rank's reports; False when its connection is closed."""
        reports = self._connections[number].receive()
        for report in reports or []:
            self._update(number, report)
        if reports is None:
            self._statuses[number].gone = not self._statuses[number].done
        return reports is not None

    def _diagnose(self, events: dict[int, float]) -> Diagnosis | None:
        if not events:
            return diagnose_stillness(self._statuses, self._quiet_s)
        waited, happened = self._clock - min(events.values()), [self._statuses[number] for number in events]
        diagnosis = diagnose_events(happened) if waited >= _GRACE_S else None
        return diagnose_broken(happened) if diagnosis is None and waited >= _BROKEN_S else diagnosis

    def _report_diagnosis(self, diagnosis: Diagnosis) -> None:
        """Log it, send it to all, and end."""
        if diagnosis.text is not None:
            _log(f"error: {diagnosis.text}\n")
        self._dismiss({"diagnosis": (diagnosis.ranks, diagnosis.failed)})
        self._leave(diagnosis.ranks, diagnosis.failed)

    def _dismiss(self, message: dict) -> None:
        """The last message to all ranks; what they still send is read, or closing would discard ours."""
        for connection in self._connections.values():
            connection.send(message)
        deadline = time.monotonic() + _LINGER_S
        for connection in self._connections.values():
            while time.monotonic() < deadline and connection.receive() is not None:
                pass
        self._close()

    def _follow(self) -> None:
        """Another rank: report our status, and receive the diagnosis."""
        connection, beat = self._connections[0], 0.0
        connection.socket.settimeout(self.interval_s / 5)
        sent = None
        while not self._done:
            messages = connection.receive()
            self._tick()
            for message in messages or []:
                if "report" in message:
                    self._update(0, message["report"])
                elif "diagnosis" in message:
                    return self._leave(*message["diagnosis"])
                else:
                    return self._close()
            first = self._statuses[0]
            first.silent_s = self._clock - self._last_report[0]
            if messages is None:
                return self._leave_by_ourselves(died([first]))
            if first.silent_s > self._quiet_s and first.is_late():
                connection.send({"blames": True})
                return self._leave_by_ourselves(hanging([first], self._quiet_s).text)
            if self._clock >= beat or self._failure != sent:
                beat, sent = self._clock + self.interval_s, self._failure
                connection.send(self._report())
        connection.send(self._report())
        self._close()

    def _leave_by_ourselves(self, text: str) -> None:
        """Rank 0, which would log it for all, is lost: the lowest other rank of each machine does."""
        host = self._statuses[rank()].host
        if rank() == min(s.rank for s in self._statuses[1:] if s.host == host):
            _log(f"error: {text}\n")
        self._leave([0], failed=False)

    def _leave(self, ranks, failed: bool) -> None:
        """End this process, unless it is to blame for an error: that goes on its way. One that hangs shows where."""
        self._close()
        if failed and rank() in ranks:
            self._diagnosed.set()
            return
        frame = sys._current_frames().get(self._main)
        if rank() in ranks and frame is not None:
            _log(f"rank {rank()} is ended here:\n{''.join(traceback.format_stack(frame))}")
        # the main thread may hold a stream for ever
        flush = threading.Thread(target=lambda: (sys.stdout.flush(), sys.stderr.flush()), daemon=True)
        flush.start()
        flush.join(1.0)
        os._exit(EXIT_CODE)


def _log(text: str) -> None:
    """In one piece, whatever the main thread holds: ranks share the terminal."""
    try:
        os.write(2, text.encode())
    except OSError:  # nobody reads it any more; that keeps no rank alive
        pass
