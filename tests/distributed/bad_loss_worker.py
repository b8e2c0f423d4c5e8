"""One rank of tests/distributed/test_bad_loss.py: the train command, where rank 1 meets data that make its loss not a number."""

import json
import os
from pathlib import Path

import torch

from helpers.ranks import command
from imp_ds.data.loading.loader import RotatingLoader
from imp_ds.train.engine.engine import Engine
from imp_ds.train.trainer import Trainer

TASK = "speech_digit"


def _spoil_batches() -> None:
    take = RotatingLoader.__next__

    def spoiled(loader):
        batch = take(loader)
        if batch.task == TASK:
            batch.inputs["audio"]["input_features"][0, 0, 0] = float("nan")
        return batch

    RotatingLoader.__next__ = spoiled


def _state(engine: Engine) -> list[torch.Tensor]:
    """Copies of all weights and of all that the optimizer knows."""
    tensors = list(engine.model.parameters())
    for state in engine.deepspeed.basic_optimizer.state.values():
        tensors += [value for value in state.values() if torch.is_tensor(value)]
    return [tensor.detach().clone() for tensor in tensors]


def _record_steps(file: Path) -> None:
    """A line for each step: its task, whether this rank's own loss was finite, and whether anything was changed by the step."""
    forward, one_step = Engine.forward, Trainer._one_step
    losses = []

    def keep_loss(engine, batch, micro_batches):
        result = forward(engine, batch, micro_batches)
        losses.append(result[0].detach())
        return result

    def watch(trainer):
        task, before = trainer._batch.task, _state(trainer.engine)
        try:
            one_step(trainer)
        finally:
            after = _state(trainer.engine)
            changed = not all(map(torch.equal, before, after))
            # of ZeRO 3 the partitions: the parameters are empty between steps, and their moments are not
            weights = float(sum(tensor.double().abs().sum() for tensor in after))
            line = dict(
                task=task, finite=bool(losses[-1].isfinite()), changed=changed, adam_steps=trainer.adam_steps, weights=weights
            )
            with file.open("a") as lines:
                lines.write(json.dumps(line) + "\n")

    Engine.forward, Trainer._one_step = keep_loss, watch


def train(folder: str, *command_line: str) -> None:
    rank = os.environ["RANK"]
    if rank == "1":
        _spoil_batches()
    _record_steps(Path(folder) / f"steps{rank}.jsonl")
    command(*command_line)
