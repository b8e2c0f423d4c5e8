"""One rank of tests/distributed/test_frozen_checkpoints.py: a run that trains a part, handed from one layout to the next."""

import json
from pathlib import Path

import torch

from helpers.ranks import leave
from helpers.small_run import full_parameters, largest_difference, make_batch, make_engine, make_run, step_engine
from imp_ds.errors import UserError
from imp_ds.families.imp.initial_weights import load_initial, sources_of
from imp_ds.families.trainable import freeze_others
from imp_ds.parallel.full_parameters import persistent_buffers
from imp_ds.parallel.groups import is_main
from imp_ds.train import checkpoint
from imp_ds.train.engine.engine import start_process_group

STEPS = 3  # of each part of a run: every task once
RATE = 1e-3
# experts and their frozen router from the source; heads that it does not have, of which some are frozen, are fresh
TRAINABLE = ["*.experts.w1", "*norm*", "objectives.*.head.weight"]
BIAS, COUNT = "imp.blocks.1.feed_forward.router.balance_E", "imp.blocks.1.feed_forward.calls"


def hand_over(out: str, source: str, layouts: list[tuple[str, int]]) -> None:
    """A run that changes its layout (file, ep_size) after every part, and one that stays on the first."""
    device, folder = start_process_group(60), Path(out).parent / "handed"
    found = dict(losses=[], refers=[], restored=[])
    for part, (file, ep_size) in enumerate(layouts):
        reader = checkpoint.Reader(checkpoint.newest(folder), source) if part else None
        engine, frozen = _start(file, ep_size, device, folder, source, reader)
        found["losses"] += _train(engine, part * STEPS)
        state = {"step": (part + 1) * STEPS, "adam_steps": (part + 1) * STEPS}
        path = checkpoint.save(engine, folder, state["step"], state, keep=2, frozen=frozen)
        found["restored"].append(_take_back(engine, path))
        found["refers"].append(sorted(entry["path"] for entry in frozen.references.values()))
    handed, buffers = full_parameters(engine), _buffers(engine)
    engine, _ = _start(*layouts[0], device, Path(out).parent / "straight", source, None)
    found["straight"] = [loss for part in range(len(layouts)) for loss in _train(engine, part * STEPS)]
    found["weights"] = largest_difference(handed, full_parameters(engine))
    found["buffers"] = [buffers, _buffers(engine)]
    found["trained"] = sum(value.numel() for name, value in handed.items() if engine.model.get_parameter(name).requires_grad)
    found["idle"] = _idle_task(device)
    if is_main():
        Path(out).write_text(json.dumps(found))
    leave()


def _start(file: str, ep_size: int, device, folder: Path, source: str, reader):
    """The engine as `start_engine` makes it; from other initial weights when a checkpoint is read, which would be seen."""
    run, places = make_run(ep_size=ep_size, clip=0.0, qk_norm=False), []
    run.train.trainable = TRAINABLE

    def prepare(model) -> None:
        layer = model.imp.blocks[1].feed_forward
        layer.router.register_buffer("balance_E", torch.zeros(4), persistent=True)
        layer.register_buffer("calls", torch.zeros((), dtype=torch.int64), persistent=True)
        layer.register_buffer("scratch", torch.zeros(2), persistent=False)
        if reader is not None:
            reader.check_base()
            reader.load_weights(model)
            sources = {}
        else:
            load_initial(model, source)
            sources = sources_of(model, source)
        freeze_others(model, TRAINABLE)
        places.append(checkpoint.refer_to_frozen(model, folder, ep_size, sources, reader))

    engine = make_engine(run, file, device, seed=int(reader is not None), prepare_model=prepare)
    if reader is not None:
        reader.load_optimizer(engine)
    return engine, places[0]


def _idle_task(device) -> str:
    """What is said of a task of which nothing is trained."""
    run = make_run(clip=0.0)
    run.train.trainable = ["objectives.image_class.*"]
    try:
        step_engine(make_engine(run, "cpu_zero2.json", device), make_batch(0), RATE)
    except UserError as error:
        return str(error)
    return "trained"


def _train(engine, first: int) -> list[float]:
    losses = []
    for step in range(first, first + STEPS):
        losses.append(step_engine(engine, make_batch(step), RATE)[0])
        buffers = persistent_buffers(engine.model)
        buffers[BIAS] += torch.tensor([0.1, -0.1, 1 / 3, float(step)])
        buffers[COUNT] += 2**40 + step  # more than float32 could tell
    return losses


def _buffers(engine) -> dict[str, list]:
    return {name: buffer.tolist() for name, buffer in persistent_buffers(engine.model).items()}


def _take_back(engine, path: Path) -> bool:
    """Whether an engine that went on has the weights and buffers of its checkpoint again when it is taken back in place."""
    before, buffers = full_parameters(engine), _buffers(engine)
    _train(engine, 0)
    changed = largest_difference(before, full_parameters(engine)) > 0 and buffers != _buffers(engine)
    checkpoint.Reader(path).restore(engine)
    return changed and largest_difference(before, full_parameters(engine)) == 0 and buffers == _buffers(engine)
