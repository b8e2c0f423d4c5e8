"""A rank's own gradient, computed before any communication, and a surrogate loss with this gradient for DeepSpeed.

DeepSpeed reduces gradients over ranks in the order in which a backward pass makes them, or those alone that it made. Where ranks
train different tasks, neither is the same on all of them. So each rank computes its gradient without DeepSpeed (`own_gradients`),
and `surrogate_loss` gives a loss of one graph for all ranks, whose backward pass makes all gradients in one order.
"""

from collections.abc import Iterable

import torch


def own_gradients(losses: Iterable[torch.Tensor], parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    """The gradient of the sum of the losses, of which each is asked for when the one before has gone backward; zeros for a
    parameter that none depends on."""
    total = None
    for loss in losses:
        found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        if total is None:
            total = list(found)
        else:
            torch._foreach_add_(total, found)
    return total


def rescale_to_norm(gradients: list[torch.Tensor], target_norm: float) -> None:
    """Scale them in place, so that all together have that norm; zeros stay zeros, and what is not finite stays so."""
    norm = torch.stack(torch._foreach_norm(gradients, dtype=torch.float32)).norm()
    # no wait for the device
    factor = torch.where(norm > 0, target_norm / norm, 1.0)
    torch._foreach_mul_(gradients, factor)


class _Surrogate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, parameter: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        ctx.gradient = gradient
        return parameter.new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx, scale: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient, ctx.gradient = ctx.gradient, None
        return gradient * scale.to(gradient.dtype), None


def surrogate_loss(parameters: list[torch.Tensor], gradients: list[torch.Tensor]) -> torch.Tensor:
    """A loss of zero whose gradient is `gradients`, made parameter after parameter; the list is emptied, so that each is
    freed when it has been made."""
    total = 0.0
    while gradients:
        total = total + _Surrogate.apply(parameters[len(gradients) - 1], gradients.pop())
    return total
