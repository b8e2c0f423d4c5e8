"""A step on the meta device, where nothing is computed or allocated, counted operation by operation. Equal layers call equal
operations: each is called once, and what it costs and gives is known from then on."""

from bisect import bisect_right
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from imp_ds.costs import Kernel
from imp_ds.families.train_module import TrainModule
from imp_ds.families.trainable import check_trains
from imp_ds.moe.layer import MoELayer
from imp_ds.tasks import Batch

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


@dataclass(frozen=True)
class Operation:
    """An operation on arguments of certain shapes: its kernel by (in the backward, in a block that is run again); and what it
    gives where that is new meta tensors alone (size, strides and dtype), None where it must be called."""

    kernels: dict[tuple[bool, bool], Kernel]
    gives: tuple | list[tuple] | None

    def again(self):
        """What it gives, without a call: its shapes are known, and there is nothing else to a meta tensor."""
        if isinstance(self.gives, list):
            return tuple(torch.empty_strided(*one[:2], dtype=one[2], device="meta") for one in self.gives)
        return torch.empty_strided(*self.gives[:2], dtype=self.gives[2], device="meta")


def count(model: TrainModule, batch: Batch, layers: list[MoELayer], operations: dict[tuple, Operation]) -> Counts:
    """Run the forward and the backward of a batch, all on the meta device. Raises UserError where nothing of it is trained.

    operations: those that earlier counts met, by their arguments' shapes; new ones are added.
    """
    rows, recorder, kept = [], _Recorder(operations), {}
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
    operations of the forward. Of equal operations, as equal layers have them, the first alone is called.

    block: the number of the block that runs, by the order in which they run; -1: none. entered: how many have run.
    """

    def __init__(self, operations: dict[tuple, Operation]):
        super().__init__()
        self.block, self.entered = -1, 0
        self._operations = operations
        self._found: list[tuple[int, bool, Operation]] = []  # the block that it ran in, whether in the backward
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
        return [operation.kernels[backward, block in again] for block, backward, operation in self._found]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.is_view:
            return func(*args, **kwargs)
        key = (func, _signature(args), _signature(tuple(kwargs.items())))
        known = self._operations.get(key)
        if known is not None and known.gives is not None:
            out = known.again()
        else:
            out = func(*args, **kwargs)
            known = self._operations[key] = known or _operation(func, args, kwargs, out)
        if known.kernels:
            self._note(known)
        return out

    def _note(self, operation: Operation) -> None:
        node = torch._C._current_autograd_node()  # None: in the forward
        if node is None:
            self._found.append((self.block, False, operation))
        else:
            edge = bisect_right(self._edges, node._sequence_nr())
            self._found.append((edge // 2 if edge % 2 else -1, True, operation))


def _signature(value) -> tuple:
    """All that the shape of an operation's outcome and its cost hang on: 1, 1.0 and True differ, tensors by their layout."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, (tuple, list)):
        return tuple(map(_signature, value))
    return type(value), value


def _operation(func, args: tuple, kwargs: dict, out) -> Operation:
    """What a call of `func` costs, a forward with its backward being one call; nothing where it takes no tensors."""
    given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    if not given:
        return Operation({}, _new_tensors(func, out))
    elements = sum(t.numel() for t in [*given, *(t for t in tree_leaves(out) if isinstance(t, torch.Tensor))])
    packet = func._overloadpacket
    name = str(packet)
    kind = next((kind for kind in _KINDS if kind in name), "copy")
    flops = width = 0
    if packet in flop_registry:
        flops = flop_registry[packet](*args, **kwargs, out_val=out)
        kind = kind if kind == "attention" else "product"
        width = min(given[-1].shape[-2:]) if kind == "product" else 0
    kernels = {
        (backward, again): Kernel(kind, width, flops, elements, int(not backward), again, float(not backward))
        for backward in (False, True)
        for again in (False, True)
    }
    return Operation(kernels, _new_tensors(func, out))


def _new_tensors(func, out) -> tuple | list[tuple] | None:
    """Size, strides and dtype of the tensor, or of each of them, that an operation gives; None where it gives anything else, or
    changes what it was given."""
    several = isinstance(out, (tuple, list))
    for tensor in out if several else [out]:
        if type(tensor) is not torch.Tensor or not tensor.is_meta or func._schema.is_mutable:
            return None
    found = [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in (out if several else [out])]
    return found if several else found[0]
