"""The encoder's blocks compiled: one graph for each shape that a task gives them, all of them made before the first step.

Blocks of one kind share their graphs, since weights are inputs of a graph. So a run of six tasks has about a dozen, where
compiling the whole model would make as many as tasks times depth (the same idea in the IMP release: a jit cache for each
dataset, objective and resolution, so that no step pads). What surrounds the blocks (embeddings, heads, losses, the optimizer)
runs as it is.

Evaluation has other shapes and runs uncompiled (`uncompiled`). A drop-free router makes rows whose number is known to the
device alone: there what has experts stays outside, and the block becomes the graphs before, between and after it.
"""

import logging
import sys
import time
from collections.abc import Iterable

import torch
from torch._dynamo.backends.registry import lookup_backend

from imp_ds.families.train_module import TrainModule
from imp_ds.moe.conditional import RoutedLinear
from imp_ds.moe.layer import MoELayer
from imp_ds.moe.routers.router import Router
from imp_ds.parallel.groups import is_main
from imp_ds.tasks import Batch

SAMPLES = 4  # of a task that are read for its warm-up: it is shapes that count

_GRAPHS_OF_A_SHAPE = 20  # of two kinds of blocks, with and without gradient, each in at most five parts


class CompiledBlocks:
    """The blocks of `model`, which are compiled at their first call with a shape, by `backend`.

    graphs: how many were made so far. One that is made after `warm` is reported on stderr, on the first rank.
    """

    def __init__(self, model: TrainModule, shapes: int, backend: str = "inductor"):
        """`shapes`: most shapes that the blocks will see, tasks times modalities."""
        self.graphs, self._warm, self._backend = 0, False, lookup_backend(backend)
        limit = _GRAPHS_OF_A_SHAPE * shapes
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)
        torch._dynamo.config.accumulated_recompile_limit = max(torch._dynamo.config.accumulated_recompile_limit, limit)
        for block in model.blocks():
            outside = _with_unknown_rows(block)
            for layer in outside:
                layer.forward = torch.compiler.disable(layer.forward)
            # the same function for all: graphs are shared among blocks that have one backend
            block.compile(backend=self._count, dynamic=False, fullgraph=not outside)

    def _count(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        self.graphs += 1
        if self._warm and is_main():
            shapes = ", ".join(str(tuple(x.shape)) for x in inputs if isinstance(x, torch.Tensor) and not _is_weight(x))
            print(f"a block is compiled again, for inputs of {shapes}: this step is slow", file=sys.stderr, flush=True)
        return self._backend(graph, inputs)

    def warm(self, engine, batches: Iterable[Batch], micro_batches: dict[str, int], count: int) -> None:
        """Make the graphs of every task from `count` batches, one of each of its shapes: a step with `engine`
        (`train.engine.engine.Engine`) that is discarded, so that weights and optimizer are what they were. All ranks call it with
        the same tasks.

        micro_batches: by task, how many its batch is split into.
        """
        for number, batch in enumerate(batches, 1):
            start, before = time.perf_counter(), self.graphs
            engine.forward(batch, micro_batches[batch.task])
            logging.disable(logging.WARNING)  # DeepSpeed takes a discarded step for one that overflowed
            engine.update(0.0, accept=lambda norm: False)
            logging.disable(logging.NOTSET)
            if is_main():
                made, seconds = self.graphs - before, time.perf_counter() - start
                print(f"compiled {batch.task} in {seconds:.0f} s ({number}/{count}, {made} new graphs)", flush=True)
        self._warm = True


def uncompiled():
    """A context in which compiled blocks run as they are written, for shapes that come only now and then."""
    return torch.compiler.set_stance("force_eager")


def tile(batch: Batch, samples: int) -> Batch:
    """A batch of `samples` samples, by repetition of the given ones."""
    have = len(next(iter(next(iter(batch.inputs.values())).values())))
    index = torch.arange(samples) % have
    return batch.map(lambda x: x[index])


def _with_unknown_rows(block: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers whose experts have as many rows as a router gives them, a drop-free one; it may be the router of another one."""
    uneven = any(isinstance(module, Router) and not module.has_even_rows for module in block.modules())
    return [module for module in block.modules() if isinstance(module, (MoELayer, RoutedLinear))] if uneven else []


def _is_weight(x: torch.Tensor) -> bool:
    return isinstance(x, torch.nn.Parameter)
