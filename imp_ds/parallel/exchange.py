"""All-to-all and sums among the ranks of a group, with gradient; all-to-all of equal parts also in two halves, so that something
else is computed while rows travel.

    travelling = start(x, group);  ...;  rows = arrive(travelling, group)

The gradient goes in the opposite direction by the same halves: backward through `arrive` starts the exchange of the gradient,
backward through `start` waits for it. So what overlaps in the forward overlaps in the backward too. The collectives are torch's
functional ones, which torch.compile keeps inside a graph. Every rank of the group has to make the same calls in the same order.

Shapes: the leading dimension is rows.
"""

import torch
import torch.distributed as dist


def exchange(x: torch.Tensor, group, sent: list[int] | None = None, received: list[int] | None = None) -> torch.Tensor:
    """The rows that all ranks of `group` (None: all ranks) sent here, in the order of ranks.

    sent, received: rows for each rank of the group; None: equal parts.
    """
    equal = _equal_parts(x, group)
    return _Exchange.apply(x, _name(group), sent or equal, received or equal)


def start(x: torch.Tensor, group) -> torch.Tensor:
    """Begin an exchange of equal parts; the result may be given to `arrive` alone."""
    return _Start.apply(x, _name(group), _equal_parts(x, group))


def arrive(travelling: torch.Tensor, group) -> torch.Tensor:
    """The rows of an exchange that `start` began."""
    return _Arrive.apply(travelling, _name(group), _equal_parts(travelling, group))


def sum_over_ranks(x: torch.Tensor, group) -> torch.Tensor:
    """The sum of all ranks' tensors; its gradient is the sum of what all ranks' results have got."""
    return _Sum.apply(x, _name(group))


def _name(group) -> str:
    return (group or dist.group.WORLD).group_name


def _equal_parts(x: torch.Tensor, group) -> list[int]:
    ranks = (group or dist.group.WORLD).size()
    return [x.shape[0] // ranks] * ranks


def _send(x: torch.Tensor, group: str, sent: list[int], received: list[int]) -> torch.Tensor:
    return torch.ops._c10d_functional.all_to_all_single(x.contiguous(), received, sent, group)


def _wait(travelling: torch.Tensor) -> torch.Tensor:
    return torch.ops._c10d_functional.wait_tensor(travelling)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return _wait(torch.ops._c10d_functional.all_reduce(x.contiguous(), "sum", group))

    @staticmethod
    def backward(ctx, grad):
        return _wait(torch.ops._c10d_functional.all_reduce(grad.contiguous(), "sum", ctx.group)), None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group, sent, received):
        ctx.reverse = group, received, sent
        return _wait(_send(x, group, sent, received))

    @staticmethod
    def backward(ctx, grad):
        return _wait(_send(grad, *ctx.reverse)), None, None, None


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group, parts):
        return _send(x, group, parts, parts)

    @staticmethod
    def backward(ctx, grad):
        return _wait(grad), None, None


class _Arrive(torch.autograd.Function):
    @staticmethod
    def forward(ctx, travelling, group, parts):
        ctx.reverse = group, parts, parts
        return _wait(travelling)

    @staticmethod
    def backward(ctx, grad):
        return _send(grad, *ctx.reverse), None, None
