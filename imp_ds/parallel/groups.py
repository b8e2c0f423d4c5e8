"""Rank, world size, and doing a thing once for all ranks, with or without a process group."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist

from imp_ds.errors import UserError

_ALONE = ContextVar("alone", default=False)


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized() and not _ALONE.get()


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process is a world of its own: what asks other ranks elsewhere asks none, and compares with nobody's samples.
    For ranks that do different things at a time."""
    before = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(before)


def rank() -> int:
    """This process among all; 0 when there is no process group."""
    return dist.get_rank() if _joined() else 0


def world_size() -> int:
    """How many processes there are; 1 when there is no process group."""
    return dist.get_world_size() if _joined() else 1


def is_main() -> bool:
    """Whether this process speaks for all: it alone prints, draws and writes what is written once."""
    return rank() == 0


def barrier() -> None:
    """Wait for all ranks; nothing where there is one alone."""
    if world_size() > 1:
        dist.barrier()


def all_reduce_mean(
    facts: list[bool | torch.Tensor], scalars: dict[str, torch.Tensor]
) -> tuple[list[bool], dict[str, float]]:
    """Each fact (a bool, or a tensor of one), true only if it is true on every rank, and each scalar's mean over the ranks.

    One small all-reduce for all of it, and one wait for the device. Every rank gives the same names.
    """
    values = torch.stack([value.detach().float() for value in scalars.values()])
    sums = torch.cat([torch.stack([torch.as_tensor(fact).to(values) for fact in facts]), values])
    if world_size() > 1:
        dist.all_reduce(sums)
    # the facts' sums are integers far below 2**24: exact in float32
    sums = sums.tolist()
    counts, sums = sums[: len(facts)], sums[len(facts) :]
    return [count == world_size() for count in counts], {name: x / world_size() for name, x in zip(scalars, sums)}


def all_agree(fact: bool) -> bool:
    """Whether it is true on every rank. All ranks call it."""
    if world_size() == 1:
        return fact
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    agreed = torch.tensor(int(fact), device=device)
    dist.all_reduce(agreed, op=dist.ReduceOp.MIN)
    return bool(agreed)


def any_rank(fact: bool) -> bool:
    """Whether it is true on at least one rank. All ranks call it."""
    return not all_agree(not fact)


def on_main(function: Callable, failure: str, *, every_rank: bool = False):
    """Call `function` on rank 0 (or on every rank) and return its result there, None elsewhere, after all ranks are done.

    When it raises UserError or OSError anywhere, every rank raises the first such error as a UserError that begins with
    `failure`: nobody is left waiting for a rank that gave up.
    """
    result, problem = None, None
    if every_rank or is_main():
        try:
            result = function()
        except UserError as error:
            problem = error
        except OSError as error:
            problem = UserError(failure, got=error)
    raise_shared(problem)
    return result


def raise_shared(problem: UserError | None) -> None:
    """Raise the first rank's problem on all ranks, if any rank has one. All ranks call it."""
    problems = [None if problem is None else str(problem)]
    if world_size() > 1:
        mine, problems = problems[0], [None] * world_size()
        dist.all_gather_object(problems, mine)
    first = next((p for p in problems if p is not None), None)
    if first is not None:
        raise UserError(first, shared=True)
