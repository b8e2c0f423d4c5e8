"""One rank of tests/distributed/test_compiled.py: steps of three tasks, compiled and not, and what came of them."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from helpers.small_run import ORDER, full_parameters, largest_difference, make_batch, make_engine, make_run, share
from imp_ds.parallel.expert_parallel import ExpertParallelMoE
from imp_ds.parallel.groups import is_main
from imp_ds.tasks import Batch
from imp_ds.train.engine import ds_config
from imp_ds.train.engine.compilation import CompiledBlocks, uncompiled
from imp_ds.train.engine.engine import Engine, start_process_group

STEPS = 6


def train(folder: str, cases: dict[str, dict]) -> None:
    """For each named case {"ds", "model", "bf16", "micro_batches", "checkpointing", "parts"}, in {name}.json: losses of plain and
    of compiled blocks, the largest difference of weights after them, what the warm-up changed, and graphs after it and in all."""
    device = start_process_group(60)
    for name, case in cases.items():
        plain = _steps(_engine(case, device, compiled=False)[0], case)
        torch.compiler.reset()
        engine, blocks, changed = _engine(case, device, compiled=True)
        warm = blocks.graphs
        found = _steps(engine, case)
        result = {
            "plain": plain[0],
            "compiled": found[0],
            "weights": largest_difference(plain[1], found[1]),
            "changed": changed,
            "warm": warm,
            "graphs": blocks.graphs,
        }
        if is_main():
            (Path(folder) / f"{name}.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


def _engine(case: dict, device: torch.device, *, compiled: bool) -> tuple[Engine, CompiledBlocks | None, float]:
    """An engine; a compiled one is warm, and comes with the largest difference that this made to weights."""

    def prepare(model) -> None:
        if case.get("checkpointing"):
            model.gradient_checkpointing_enable({"use_reentrant": False})
        for layer in model.modules():
            if isinstance(layer, ExpertParallelMoE):
                layer.dispatcher.parts = case.get("parts") if compiled else None

    ds = ds_config.load(ds_config.FOLDER / case["ds"])
    if case.get("bf16"):
        ds["bf16"] = {"enabled": True}
    engine = make_engine(make_run(**case["model"]), ds, device, prepare_model=prepare)
    if not compiled:
        return engine, None, 0.0
    before = full_parameters(engine)
    blocks = CompiledBlocks(engine.model, shapes=9, backend="aot_eager")
    blocks.warm(engine, _batches(0), {task: case.get("micro_batches", 1) for task in ORDER}, len(ORDER))
    return engine, blocks, largest_difference(before, full_parameters(engine))


def _batches(first: int) -> Iterator[Batch]:
    for step in range(first, first + len(ORDER)):
        batch = make_batch(step)
        batch.key_B = torch.arange(len(batch.targets["label"]))
        yield share(batch)


def _steps(engine: Engine, case: dict) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses, with an evaluation between two steps, and the weights after them."""
    losses = []
    for first in range(0, STEPS, len(ORDER)):
        for batch in _batches(first):
            loss, _, _ = engine.forward(batch, case.get("micro_batches", 1))
            engine.update(1e-3)
            losses.append(float(loss))
        engine.deepspeed.eval()
        with uncompiled(), torch.no_grad():
            engine.model(batch.map(lambda x: x[:1]))
        engine.deepspeed.train()
    return losses, full_parameters(engine)
