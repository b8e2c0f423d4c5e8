"""The costs of a model that nobody has worked out: its forward and backward run on the meta device, where nothing is computed or
allocated, and are counted operation by operation.

Model FLOPs are those of products and attention, as everywhere. Of what `train.trainable` leaves frozen there are those that are
really computed: a part that no gradient goes through runs forward alone, one that it goes through has no gradient of its weights.
The rows of experts that choose freely are counted as if no token were padding; a model whose shapes hang on its data cannot be
counted, and its family needs a cost of its own.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

from imp_ds.config import RunConfig
from imp_ds.costs import Exchange, Kernel, Parameters, is_of_experts
from imp_ds.errors import UserError
from imp_ds.families.cost_model import flops_by_task
from imp_ds.families.counted_step import Counts, Operation, count
from imp_ds.families.train_module import TrainModule
from imp_ds.families.trainable import freeze_others, is_trained
from imp_ds.moe.layer import MoELayer
from imp_ds.tasks import Batch, Task


class CountedCost:
    """A `CostModel` of `model`, which is on the meta device.

    shapes: (run, task with one view, samples) -> a batch of so many samples there. Raises UserError for a pattern of
    `train.trainable` that nothing matches.
    """

    def __init__(self, run: RunConfig, model: TrainModule, shapes: Callable[[RunConfig, Task, int], Batch]):
        self.run, self.model, self._shapes = run, model, shapes
        freeze_others(model, run.train.trainable)
        self._layers = [module for module in model.modules() if isinstance(module, MoELayer)]
        self.experts = max((layer.router.num_experts for layer in self._layers), default=0)
        self._counts: dict[tuple, dict[int, Counts]] = {}
        self._operations: dict[tuple, Operation] = {}

    def sizes(self) -> dict[str, int]:
        return {name: parameter.numel() for name, parameter in self.model.named_parameters()}

    def parameters(self, sizes: dict[str, int]) -> Parameters:
        encoder = sum(n for name, n in sizes.items() if name.startswith(self._blocks))
        experts = sum(n for name, n in sizes.items() if is_of_experts(name))
        one = experts // (self.experts * len(self._layers)) if self.experts else 0
        active = encoder - experts
        if self.experts:
            counts = self._count(self.run.tasks[0].seen_as(0), 1)
            tokens = sum(self.tokens(self.run.tasks[0].seen_as(0)).values())
            active += round(sum(rows.count for rows in counts.rows) / tokens * one)
        return Parameters(encoder, experts, active, sum(sizes.values()) - encoder, one)

    def tokens(self, task: Task) -> dict[str, int]:
        inputs = self._shapes(self.run, task, 1).inputs
        return {modality: next(iter(named.values())).shape[1] for modality, named in inputs.items()}

    def encodings(self, task: Task) -> int:
        return 1

    def kernels(self, task: Task, world: int, value_bytes: int, ep_size: int = 1) -> list[Kernel]:
        found = self._count(task, task.batch_size // world).kernels
        sized = {kernel: replace(kernel, bytes=kernel.bytes * value_bytes) for kernel in set(found)}
        return [sized[kernel] for kernel in found]

    def flops(self, task: Task, world: int) -> float:
        return world * sum(kernel.flops for kernel in self._count(task, task.batch_size // world).kernels)

    def rank_flops(self, task: Task, world: int, alone: bool) -> float:
        return self.flops(task, world) / world

    def batch_flops(self, world: int, alone: bool) -> Callable[[Batch], float]:
        return flops_by_task(self, self.run.tasks, world, alone)

    def activation_bytes(self, task: Task, world: int, value_bytes: int, checkpointing: bool) -> float:
        """With checkpointing what enters the blocks that gradients go through is kept, and one block's activations at a time."""
        samples = task.batch_size // world // task.micro_batches
        counts = self._count(task, samples)
        in_blocks = sum(counts.kept_in)
        if checkpointing and in_blocks:
            width = getattr(self.model.config, "hidden_size", 0)
            entering = samples * sum(self.tokens(task).values()) * width
            in_blocks = min(in_blocks, max(counts.kept_in) + entering * sum(kept > 0 for kept in counts.kept_in))
        return (counts.kept + in_blocks) * value_bytes

    def touched(self, task: Task) -> tuple[tuple[str, ...], tuple[str, ...]]:
        patterns = self.run.train.trainable
        frozen = [name for name, _ in self.model.named_parameters() if not is_trained(name, patterns)]
        counted = self._counts.get(self._key(task)) or {1: self._count(task, 1)}  # by whatever number of samples
        return (*next(iter(counted.values())).touched, *frozen), self._blocks

    def exchanges(self, task: Task, world: int, rounds: int, value_bytes: int) -> list[Exchange]:
        """The experts' rows, there and back, of all MoE layers; of a layer that no gradient goes through once."""
        found = []
        for rows, width, trained in self._count(task, task.batch_size // world).rows:
            passes = rounds if trained else 1
            found.append(Exchange("all_to_all", 2 * passes * rows * width * value_bytes, 2 * passes))
        return found

    def compared(self, task: Task) -> list[Exchange]:
        return []

    @cached_property
    def _blocks(self) -> tuple[str, ...]:
        paths = {module: path for path, module in self.model.named_modules()}
        return tuple(f"{paths[block]}." for block in self.model.blocks())

    def _count(self, task: Task, samples: int) -> Counts:
        known = self._counts.setdefault(self._key(task), {})
        if samples not in known:
            known[samples] = self.counted(self._shapes(self.run, task, samples))
        return known[samples]

    def _key(self, task: Task) -> tuple:
        """What of a task a sample's costs hang on: tasks that have it in common are counted once."""
        return task.name, task.views.model_dump_json()

    def counted(self, batch: Batch) -> Counts:
        """What a step of a batch on the meta device does. Raises UserError where it cannot be counted."""
        try:
            return count(self.model, batch, self._layers, self._operations)
        except (RuntimeError, NotImplementedError, TypeError) as error:
            raise UserError(
                f"the costs of the model cannot be counted on the meta device, for the task {batch.task}",
                got=str(error).strip().partition("\n")[0], fix="define ModelFamily.cost",
            ) from error  # fmt: skip
