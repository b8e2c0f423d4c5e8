"""What the ranks exchange of a step: of each task that trained, means over the ranks that trained it.

One exchange of sums serves all of it, whatever the number of ranks. Every rank knows from the schedule which tasks the others
train; what they measure of a task that this rank has never trained, it asks once.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist

from imp_ds.parallel.groups import all_reduce_mean, world_size


class StepMeans:
    """(step, this rank's task, facts, values by name) -> (each fact, true only if it is true on every rank; {task: {name: mean
    over the ranks that trained it}}, in the order of the tasks). All ranks call it.

    Facts are bools or tensors of one; values are tensors or numbers, of the same names at every step of a task, with "loss".

    mixture: step -> {task: share of the ranks that train it}.
    """

    def __init__(self, mixture: Callable[[int], dict[str, float]]):
        self.mixture = mixture
        self._names: dict[str, list[str]] = {}

    def __call__(
        self, step: int, task: str, facts: list[bool | torch.Tensor], values: dict[str, torch.Tensor | float]
    ) -> tuple[list[bool], dict[str, dict[str, float]]]:
        shares = self.mixture(step)
        self._learn(task, list(values), shares)
        nothing = values["loss"].new_zeros(())
        measured = dict.fromkeys(((other, name) for other in shares for name in self._names[other]), nothing)
        measured |= {(task, name): value for name, value in _as_tensors(values).items()}
        agreed, means = all_reduce_mean(facts, measured)
        return agreed, {
            other: {name: means[other, name] / share for name in self._names[other]} for other, share in shares.items()
        }

    def _learn(self, task: str, names: list[str], shares: dict[str, float]) -> None:
        """Know the names of every task of the step; all ranks lack the same."""
        if len(shares) == 1:
            self._names[task] = names
        elif not shares.keys() <= self._names.keys():
            everyone = [None] * world_size()
            dist.all_gather_object(everyone, (task, names))
            self._names.update(everyone)
        assert self._names[task] == names, f"task {task} has measured {names}, at earlier steps {self._names[task]}"


def _as_tensors(values: dict[str, torch.Tensor | float]) -> dict[str, torch.Tensor]:
    """On the loss's device, the numbers by one transfer."""
    numbers = {name: value for name, value in values.items() if not isinstance(value, torch.Tensor)}
    return values | dict(zip(numbers, values["loss"].new_tensor(list(numbers.values()), dtype=torch.float32)))
