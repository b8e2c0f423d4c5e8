"""How tasks interfere in the weights that they share (Uni-Perceiver-MoE, arXiv 2206.04674, section 3.1; release, notebook
`tools/calinterference.ipynb`).

A small step of length lambda down the gradient g_j(a) of task j on its sample a lowers the loss of task i on its sample b, to
first order, by lambda * D_ij(a, b), with

    D_ij(a, b) = g_j(a) . g_i(b) / |g_j(a)|

Averaged over the N - 1 samples a other than b (also where the tasks differ), and compared with what steps of the task's own do:

    I_ij = mean over b of  mean over a of D_ij(a, b)  /  mean over a of D_ii(a, b)

I_ii is 1. Below 0, steps of task j harm task i; from 0 to 1 they help less than its own; above 1 they help more.

Shapes: N samples of a task, K tasks, P elements of a weight.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from imp_ds.errors import UserError


@dataclass(frozen=True)
class Interference:
    """The measure in one weight.

    tasks: the names of rows and columns.
    matrix_KK: I, float64; the row is the task that is affected, the column the one that takes the step. A row is not a number
        where a sample of its task has a gradient of exactly zero.
    averse_K: on how many of a task's samples steps of its own would raise its loss. What divides is then near zero or below it:
        where they are many, the row shows little.
    """

    tasks: tuple[str, ...]
    matrix_KK: torch.Tensor
    averse_K: torch.Tensor

    @property
    def between_tasks(self) -> float:
        """The mean off the diagonal; not a number for a single task."""
        return self.matrix_KK[~torch.eye(len(self.tasks), dtype=torch.bool)].mean().item()


def interference(tasks: Iterable[str], rounds: Iterable[dict[str, torch.Tensor]]) -> dict[str, Interference]:
    """The measure in each of several weights.

    Args:
        tasks: their names, K.
        rounds: N times the gradients of one sample of each task, {name of the weight: float32 [K, P]}, each used before the next
            is asked for. It is read twice, and must give the same both times: so no more than the sums over the rounds, [K, P],
            is held here.

    Raises UserError for fewer than two rounds.
    """
    sums: dict[str, torch.Tensor] = {}
    count = 0
    for gradients in rounds:
        count += 1
        for name, gradient_KP in gradients.items():
            shrink_K1 = 1 / _divisors(gradient_KP.norm(dim=1, keepdim=True))
            if name not in sums:
                sums[name] = torch.zeros_like(gradient_KP)
            sums[name].addcmul_(gradient_KP, shrink_K1)
    if count < 2:
        raise UserError("interference needs several gradients of each task", got=count, allowed="2 or more; published: 100")
    changes: dict[str, list[torch.Tensor]] = {name: [] for name in sums}
    for gradients in rounds:
        for name, gradient_KP in gradients.items():
            changes[name].append(_mean_changes(gradient_KP, sums[name], count))
    return {name: _compare(tuple(tasks), torch.stack(found)) for name, found in changes.items()}


def _mean_changes(gradient_KP: torch.Tensor, sum_KP: torch.Tensor, count: int) -> torch.Tensor:
    """The mean over a of D_ij(a, b) for one b, float64 [K, K]: what all steps do together, less that of the same number."""
    product_KK = (gradient_KP @ gradient_KP.T).double().cpu()
    own_KK = product_KK / _divisors(gradient_KP.norm(dim=1).double().cpu())
    return ((gradient_KP @ sum_KP.T).double().cpu() - own_KK) / (count - 1)


def _compare(tasks: tuple[str, ...], change_NKK: torch.Tensor) -> Interference:
    own_NK = change_NKK.diagonal(dim1=1, dim2=2)
    return Interference(tasks, (change_NKK / own_NK.unsqueeze(2)).mean(0), (own_NK < 0).sum(0))


def _divisors(norm_K: torch.Tensor) -> torch.Tensor:
    """A gradient of zero has no direction: its step is none."""
    return norm_K.where(norm_K > 0, 1.0)
