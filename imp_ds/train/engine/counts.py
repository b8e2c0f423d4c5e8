"""What routers count in a step, over all ranks and micro-batches, and what they change by it (`Router.counts`)."""

import torch
import torch.distributed as dist

from imp_ds.moe.routers.router import Router
from imp_ds.parallel.groups import world_size


@torch.no_grad()
def finish_counts(routers: list[Router], taken: bool) -> None:
    """Begin to count anew, after each router was told the sum over ranks where the step was `taken`. All ranks call it alike.

    routers: in the same order on all ranks; of those that count, one message for all of them together.
    """
    if not routers:
        return
    counts = [router.counts() for router in routers]
    if taken:
        total = torch.cat([count.flatten() for count in counts])
        if world_size() > 1:
            dist.all_reduce(total)
        for router, count, summed in zip(routers, counts, total.split([count.numel() for count in counts])):
            router.after_step(summed.view_as(count))
    for count in counts:
        count.zero_()
