"""What a machine reaches in large matrix products: the denominator of a run's percentages."""

import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from imp_ds.parallel.groups import barrier, world_size


def matrix_peak(device: torch.device, dtype: torch.dtype, limit_s: float = 0.25) -> float:
    """FLOPs a second that large matrix products of `dtype` reach on all ranks together, all computing at once; every rank
    calls it. Takes about `limit_s`."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)  # of zeros, a GPU would be faster than it is in training
    barrier()
    best = min(times_of(lambda: a @ b, device, limit_s))
    total = torch.tensor(2 * size**3 / best, device=device, dtype=torch.float64)
    if world_size() > 1:
        dist.all_reduce(total)
    return float(total)


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def times_of(function: Callable, device: torch.device, limit_s: float, before: Callable = lambda: None) -> list[float]:
    """Seconds of each call, after two that do not count: as many as fit into `limit_s`, at least three, and equally many on
    every rank, since they may communicate. `before` is called before each, untimed."""

    def once() -> float:
        before()
        wait_for(device)
        start = time.perf_counter()
        function()
        wait_for(device)
        return time.perf_counter() - start

    once()
    count = torch.tensor(max(3, min(200, int(limit_s / max(once(), 1e-9)))), device=device)
    if world_size() > 1:
        dist.all_reduce(count, op=dist.ReduceOp.MIN)
    return [once() for _ in range(int(count))]
