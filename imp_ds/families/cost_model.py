"""What planning and the monitor ask about the costs of a run."""

from collections.abc import Callable
from typing import Protocol

from imp_ds.costs import Exchange, Kernel, Parameters
from imp_ds.tasks import Batch, Task


class CostModel(Protocol):
    """What a run costs, by arithmetic. `experts`: of a MoE layer; 0: none. Tasks are those of the run, each with one view."""

    experts: int

    def sizes(self) -> dict[str, int]:
        """Elements of each parameter of the whole model, by name."""

    def parameters(self, sizes: dict[str, int]) -> Parameters:
        """Sums over `sizes`."""

    def tokens(self, task: Task) -> dict[str, int]:
        """Tokens of a sample in training, by modality. Raises UserError for a view that does not fit."""

    def encodings(self, task: Task) -> int:
        """How many sequences of different shape a step encodes: how often it meets the shared parameters."""

    def kernels(self, task: Task, world: int, value_bytes: int, ep_size: int = 1) -> list[Kernel]:
        """What one of `world` ranks runs in a step."""

    def flops(self, task: Task, world: int) -> float:
        """Model FLOPs of a step over all ranks."""

    def rank_flops(self, task: Task, world: int, alone: bool) -> float:
        """Those of one of the ranks; `alone`: it compares its own samples only."""

    def batch_flops(self, world: int, alone: bool) -> Callable[[Batch], float]:
        """What gives the model FLOPs of a rank's batch; what it needs to know is worked out now. `alone` as of `rank_flops`."""

    def activation_bytes(self, task: Task, world: int, value_bytes: int, checkpointing: bool) -> float:
        """What one rank keeps of a step for its backward."""

    def touched(self, task: Task) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Prefixes of the parameters that a task uses, and gives gradients to where they are trained, and of those that each of
        its encodings runs through."""

    def exchanges(self, task: Task, world: int, rounds: int, value_bytes: int) -> list[Exchange]:
        """What the ranks of an expert group send each other in a step of `rounds` passes."""

    def compared(self, task: Task) -> list[Exchange]:
        """What all ranks gather of vectors that samples are compared by."""


def flops_by_task(cost: CostModel, tasks: list[Task], world: int, alone: bool) -> Callable[[Batch], float]:
    """`CostModel.batch_flops` where all batches of a task's view cost the same."""
    table = {task.name: [cost.rank_flops(seen, world, alone) for seen in task.variants()] for task in tasks}
    return lambda batch: table[batch.task][batch.report.view]
