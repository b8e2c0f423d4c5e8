"""The costs of a model that nobody has worked out: its forward and backward run on the meta device, where nothing is computed or
allocated, and are counted operation by operation.

Model FLOPs are those of products and attention, as everywhere. Of what `train.trainable` leaves frozen there are those that are
really computed: a part that no gradient goes through runs forward alone, one that it goes through has no gradient of its weights.
The rows of experts that choose freely are counted as if no token were padding; a model whose shapes hang on its data cannot be
counted, and its family needs a cost of its own.

Shapes: N rows, I inputs and O outputs of a product.
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from imp_ds.config import RunConfig
from imp_ds.costs import Exchange, Kernel, Parameters, is_of_experts
from imp_ds.errors import UserError
from imp_ds.families.cost_model import flops_by_task
from imp_ds.families.train_module import TrainModule
from imp_ds.families.trainable import check_trains, freeze_others, is_trained
from imp_ds.moe.layer import MoELayer
from imp_ds.tasks import Batch, Task

_KINDS = ("attention", "norm", "gelu")  # of `imp_ds.costs.Kernel`, by what stands in the names of operations


class Counts(NamedTuple):
    """Of a step of one rank. kernels: their `bytes` are numbers of elements; kept: elements that the backward needs, outside of
    blocks, and of each block; touched: names of the parameters that had a gradient; rows: of each MoE layer."""

    kernels: list[Kernel]
    kept: int
    kept_in: list[int]
    touched: list[str]
    rows: list["Rows"]


class Rows(NamedTuple):
    """Those of a MoE layer's experts, and their width; is_trained: whether gradients go through it or to it."""

    count: int
    width: int
    is_trained: bool


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
        self._counts: dict[tuple, Counts] = {}

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
        return [replace(kernel, bytes=kernel.bytes * value_bytes) for kernel in found]

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
        return (*self._count(task, 1).touched, *frozen), self._blocks

    def exchanges(self, task: Task, world: int, rounds: int, value_bytes: int) -> list[Exchange]:
        """The experts' rows, there and back, of all MoE layers; of a layer that no gradient goes through once."""
        found = []
        for count, width, trained in self._count(task, task.batch_size // world).rows:
            passes = rounds if trained else 1
            found.append(Exchange("all_to_all", 2 * passes * count * width * value_bytes, 2 * passes))
        return found

    def compared(self, task: Task) -> list[Exchange]:
        return []

    @property
    def _blocks(self) -> tuple[str, ...]:
        paths = {module: path for path, module in self.model.named_modules()}
        return tuple(f"{paths[block]}." for block in self.model.blocks())

    def _count(self, task: Task, samples: int) -> Counts:
        known = (task.name, task.views.model_dump_json(), samples)
        if known not in self._counts:
            self._counts[known] = self.counted(self._shapes(self.run, task, samples))
        return self._counts[known]

    def counted(self, batch: Batch) -> Counts:
        """What a step of a batch on the meta device does. Raises UserError where it cannot be counted."""
        try:
            return count(self.model, batch, self._layers)
        except (RuntimeError, NotImplementedError, TypeError) as error:
            raise UserError(
                f"the costs of the model cannot be counted on the meta device, for the task {batch.task}",
                got=str(error).strip().partition("\n")[0], fix="define ModelFamily.cost",
            ) from error  # fmt: skip


def count(model: TrainModule, batch: Batch, layers: list[MoELayer]) -> Counts:
    """Run the forward and the backward of a batch, all on the meta device. Raises UserError where nothing of it is trained."""
    rows, recorder, kept = [], _Recorder(), {}
    known = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in known and storage not in kept:
            kept[storage] = (recorder.block, tensor)  # the tensor with it, so that its storage is not made anew
        return tensor

    def taken(router, inputs, routing) -> None:
        experts = layers[[layer.router for layer in layers].index(router)].experts
        trained = routing.x_TD.requires_grad or any(parameter.requires_grad for parameter in experts.parameters())
        rows.append(Rows(len(routing.token_index_N), routing.x_TD.shape[1], trained))

    blocks = model.blocks()
    hooks = [layer.router.register_forward_hook(taken) for layer in layers]
    for block in blocks:
        hooks += [block.register_forward_pre_hook(recorder.enter), block.register_forward_hook(recorder.leave)]
    try:
        with recorder, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            check_trains(loss := model(batch).loss, batch)
            loss.backward()
        touched = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    finally:
        model.zero_grad(set_to_none=True)
        for hook in hooks:
            hook.remove()
    sums = [0] * (recorder.entered + 1)  # the last one: outside of blocks
    for block, tensor in kept.values():
        sums[block] += tensor.numel()
    return Counts(recorder.kernels(), sums.pop(), sums, touched, rows)


class _Recorder(TorchDispatchMode):
    """Notes each operation as a kernel. What of the backward is a block's is known by the numbers that autograd gives to the
    operations of the forward.

    block: the number of the block that runs, by the order in which they run; -1: none. entered: how many have run.
    """

    def __init__(self):
        super().__init__()
        self.block, self.entered = -1, 0
        self._found: list[tuple[int, Kernel]] = []  # and the block that it ran in
        self._edges: list[int] = []  # numbers at which blocks begin and end, in turn

    def enter(self, *_) -> None:
        self.block = self.entered
        self.entered += 1
        self._edges.append(torch.autograd._get_sequence_nr())

    def leave(self, *_) -> None:
        self.block = -1
        self._edges.append(torch.autograd._get_sequence_nr())

    def kernels(self) -> list[Kernel]:
        """All of them; a block that no gradient goes through is not run again, so that its kernels are as those outside."""
        begins_and_ends = zip(self._edges[::2], self._edges[1::2])
        again = {block for block, (begin, end) in enumerate(begins_and_ends) if end > begin}
        return [replace(kernel, in_block=block in again) for block, kernel in self._found]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if func.is_view or not (tensors := [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]):
            return out
        elements = sum(t.numel() for t in [*tensors, *(t for t in tree_leaves(out) if isinstance(t, torch.Tensor))])
        name = str(packet)
        kind = next((kind for kind in _KINDS if kind in name), "copy")
        flops = width = 0
        if packet in flop_registry:
            flops = flop_registry[packet](*args, **kwargs, out_val=out)
            kind = kind if kind == "attention" else "product"
            width = min(tensors[-1].shape[-2:]) if kind == "product" else 0
        node = torch._C._current_autograd_node()  # None: in the forward, with which the backward is one call
        if node is None:
            found = Kernel(kind, width, flops, elements, calls=1, forward=1.0)
            self._found.append((self.block, found))
        else:
            edge = bisect_right(self._edges, node._sequence_nr())
            found = Kernel(kind, width, flops, elements, calls=0, forward=0.0)
            self._found.append((edge // 2 if edge % 2 else -1, found))
        return out
