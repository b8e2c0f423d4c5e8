"""Gather rows of all ranks, with gradient.

Shapes: B rows of this rank, N = B * ranks.
"""

import torch
import torch.distributed as dist

from imp_ds.parallel.groups import world_size

# renamed in torch 2.13; 2.11 knows the older names only
_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_scatter_single = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class _GatherRows(torch.autograd.Function):
    """all_gather forward; backward sums every rank's gradient of this rank's rows, so that summed local losses give the
    gradient of the loss over the joined batch."""

    @staticmethod
    def forward(ctx, x_BD: torch.Tensor) -> torch.Tensor:
        return _all_gather(x_BD)

    @staticmethod
    def backward(ctx, grad_ND: torch.Tensor) -> torch.Tensor:
        grad_BD = grad_ND.new_empty(grad_ND.shape[0] // world_size(), *grad_ND.shape[1:])
        _scatter_single(grad_BD, grad_ND.contiguous())
        return grad_BD


def _all_gather(x: torch.Tensor) -> torch.Tensor:
    joined = x.new_empty(x.shape[0] * world_size(), *x.shape[1:])
    _gather_single(joined, x.contiguous())
    return joined


def gather_rows(x: torch.Tensor) -> torch.Tensor:
    """The rows of all ranks in rank order, [N, ...], differentiable for floating point. Every rank gives equally many rows."""
    if world_size() == 1:
        return x
    if x.requires_grad and torch.is_grad_enabled():
        return _GatherRows.apply(x)
    return _all_gather(x)


def gather_objects(x) -> list:
    """What each rank gives, in rank order; small objects that can be pickled. All ranks call it."""
    found = [x] * world_size()
    if world_size() > 1:
        dist.all_gather_object(found, x)
    return found
