"""Which rank is to blame when a run cannot go on: a pure function of what is known of every rank.

One rank that hangs or dies stops all the others inside a collective operation, so many ranks stand still and one is
the cause. What is certain comes first: a process that is gone, then an error that a rank met by itself, then an error
that only shows a broken connection. Of ranks that stand still, the one that does not wait for the others is the cause.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from imp_ds.errors import UserError

_SHOWN = 8  # ranks in a message
# what the survivors of a dead rank meet in gloo and NCCL: an effect, never the cause
_BROKEN = re.compile(r"connection|peer|socket|broken pipe|timed out|timeout|nccl|gloo", re.IGNORECASE)
_RESUME = "--resume auto goes on from the newest complete checkpoint"


@dataclass
class RankStatus:
    """What is known of a rank. Times in seconds.

    still_s is how long its training had made no progress, as of its last report, and allowed_s how long it may;
    silent_s is how long ago its last report was. `waiting`: it was in a collective operation.
    """

    rank: int
    host: str = ""
    pid: int = 0
    step: int = 0
    phase: str = "starting"
    location: str = ""
    still_s: float = 0.0
    allowed_s: float = float("inf")
    waiting: bool = False
    failure: str | None = None
    effect: bool = False  # the failure looks like the end of another rank
    is_user_error: bool = False  # the rank itself logs it best
    done: bool = False  # it reported its end, or ended with an error that all ranks share
    gone: bool = False  # its connection was closed without that
    blames: bool = False  # it has left because rank 0 was silent
    silent_s: float = 0.0

    def name(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host})"

    def is_late(self) -> bool:
        return self.still_s + self.silent_s > self.allowed_s

    def where(self) -> str:
        where = f"step {self.step}, {self.phase}" + (f", at {self.location}" if self.location else "")
        return f"{where} ({self.silent_s:.0f} s ago)" if self.silent_s >= 2 else where


@dataclass(frozen=True)
class Diagnosis:
    """The ranks to blame, whether they met an error of their own, and the message, once for all; None: they log it."""

    ranks: tuple[int, ...]
    failed: bool
    text: str | None


def is_effect(error: BaseException) -> bool:
    """Whether an error looks like what a rank meets when another one is gone."""
    return isinstance(error, RuntimeError | OSError) and bool(_BROKEN.search(str(error)))


def diagnose_events(statuses: Sequence[RankStatus]) -> Diagnosis | None:
    """The ranks that are gone, or else the first whose failure is its own, with those that met the same. `statuses` in the
    order of the events."""
    gone = [s for s in statuses if s.gone]
    if gone:
        return Diagnosis(tuple(s.rank for s in gone), False, died(gone))
    failed = next((s for s in statuses if s.failure is not None and not s.effect), None)
    return None if failed is None else _failed([s for s in statuses if s.failure == failed.failure])


def diagnose_broken(statuses: Sequence[RankStatus]) -> Diagnosis | None:
    """The first rank that lost a connection, for want of any better cause."""
    first = next((s for s in statuses if s.failure is not None), None)
    return None if first is None else _failed([first])


def diagnose_stillness(statuses: Sequence[RankStatus], quiet_s: float) -> Diagnosis | None:
    """The ranks that hang, if any.

    A rank is late when its training stood still for longer than it may in its phase, as far as is known. A late rank that
    waits for others is no cause, unless all of them wait; one silent for quiet_s is not taken to wait.
    """
    running = [s for s in statuses if not s.done]
    late = [s for s in running if s.is_late()]
    culprits = [s for s in late if not s.waiting or s.silent_s > quiet_s]
    if culprits:
        first = min(s.step for s in culprits)
        return hanging([s for s in culprits if s.step == first], quiet_s)
    if late and len(late) == len(running):
        return _deadlock(statuses)
    return None


def died(gone: Sequence[RankStatus]) -> str:
    """The message for processes that are gone."""
    return _message(
        gone, "died", "look for its last words above, for a kill from outside (out of memory: dmesg), and whether its machine "
        "can be reached; " + _RESUME,
    )  # fmt: skip


def hanging(late: Sequence[RankStatus], quiet_s: float) -> Diagnosis:
    """The diagnosis of ranks that hang or are silent."""
    if all(s.silent_s > quiet_s for s in late):
        what = f"gave no sign of life for {max(s.silent_s for s in late):.0f} s"
        fix = "look whether its process is stopped and its machine can be reached; "
    else:
        what = f"hangs: no progress for {max(s.still_s + s.silent_s for s in late):.0f} s"
        fix = "its stack is in its own output; "
    return Diagnosis(tuple(s.rank for s in late), False, _message(late, what, fix + _RESUME, _limit(late)))


def _failed(alike: Sequence[RankStatus]) -> Diagnosis:
    text = _message(alike, f"failed: {alike[0].failure}", "its own output has the whole error; " + _RESUME)
    return Diagnosis(tuple(s.rank for s in alike), True, None if alike[0].is_user_error else text)


def _deadlock(statuses: Sequence[RankStatus]) -> Diagnosis:
    running = [s for s in statuses if not s.done]
    still = min(s.still_s for s in running)
    if len(running) == 1:
        return hanging(running, quiet_s=float("inf"))
    locations = [f"rank {s.rank}: " + ("has ended" if s.done else s.where()) for s in statuses[:_SHOWN]]
    if len(statuses) > _SHOWN:
        locations.append(f"and {len(statuses) - _SHOWN} more")
    text = UserError(
        f"all ranks wait for each other for {still:.0f} s", got="\n           ".join(locations),
        allowed=_limit(running),
        fix="those that do not wait where the others do took another path; their stacks are in their own outputs; " + _RESUME,
    )  # fmt: skip
    return Diagnosis(tuple(s.rank for s in running), False, str(text))


def _limit(late: Sequence[RankStatus]) -> str:
    first = min(late, key=lambda s: s.allowed_s)
    if first.phase.startswith("starting"):
        return f"{first.allowed_s:g} s (train.start_timeout_s)"
    return f"{first.allowed_s:g} s (train.hang_timeout_s, or more in a long phase)"


def _message(statuses: Sequence[RankStatus], what: str, fix: str, allowed: str | None = None) -> str:
    shown = statuses[:_SHOWN]
    more = f" and {len(statuses) - _SHOWN} more" if len(statuses) > _SHOWN else ""
    names = ", ".join(s.name() for s in shown) + more
    return str(UserError(f"{names} {what}", got="; ".join(s.where() for s in shown), allowed=allowed, fix=fix))
