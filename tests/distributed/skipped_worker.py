"""One rank of tests/distributed/test_skipped_steps.py: some steps are discarded, beside a run that never saw their batches."""

import json
import math
from pathlib import Path

import torch

from helpers.ranks import leave
from helpers.small_run import full_parameters, make_batch, make_engine, make_run, share, step_engine
from imp_ds.parallel.groups import rank
from imp_ds.train.engine import master_state
from imp_ds.train.engine.engine import Engine, start_process_group

BEFORE, AFTER = (0, 1, 2), (6, 7, 8)  # every task before and after the three steps that are discarded
RATE = 1e-3


def run_all(folder: str, cases: dict[str, dict]) -> None:
    """For each case {"ep_size", "ds"} what this rank saw, in {name}_{rank}.json."""
    device = start_process_group(60)
    for name, case in cases.items():
        stage = case["ds"]["zero_optimization"]["stage"]
        # ZeRO 3 takes ten times as long, most of it for each module: one layer there, with experts
        model = dict(num_hidden_layers=1, moe_layers="every:1") if stage == 3 else {}
        run = make_run(ep_size=case["ep_size"], clip=0.1 if stage else 0.0, **model)
        found = compare(make_engine(run, case["ds"], device), make_engine(run, case["ds"], device))
        (Path(folder) / f"{name}_{rank()}.json").write_text(json.dumps(found))
    leave()


def compare(engine: Engine, unspoilt: Engine) -> dict[str, bool | list]:
    """{"moved": whether the steps before changed the state at all, a bool for each way of discarding a step: whether it left
    everything bit for bit as it was, "returned": what it answered, "losses": both runs' afterwards, "same": their states}."""
    start = state(engine)
    for other in (engine, unspoilt):
        for step in BEFORE:
            step_engine(other, make_batch(step), RATE)
    found, reported = {"moved": not same(start, state(engine))}, {}
    for fn in (refuse, skip, skip_accumulated, spoil_rank_1):
        before = state(engine)
        reported[fn.__name__] = fn(engine)
        found[fn.__name__] = same(before, state(engine))
    losses = [[step_engine(other, make_batch(step), RATE) for step in AFTER] for other in (engine, unspoilt)]
    return found | {"returned": reported, "losses": losses, "same": same(state(engine), state(unspoilt))}


def refuse(engine: Engine) -> list:
    """A step of two micro-batches whose norm is not accepted."""
    seen = []
    engine.forward(share(make_batch(3)), micro_batches=2)
    norm, accepted = engine.update(RATE, accept=lambda norm: seen.append(norm) or False)
    return [len(seen), seen[0] == norm and math.isfinite(norm), accepted]


def skip(engine: Engine) -> list:
    """A batch that is forgotten after its forward."""
    engine.forward(share(make_batch(4)))
    engine.skip()
    return []


def skip_accumulated(engine: Engine) -> list:
    """The same, of two micro-batches whose samples are not compared: the first one has gone backward already."""
    engine.forward(share(make_batch(5)), micro_batches=2)
    engine.skip()
    return []


def spoil_rank_1(engine: Engine) -> list:
    """A step whose loss is finite everywhere, and whose gradient is not a number on rank 1."""
    head = engine.model.objectives["image_class"].parts[0].head

    def spoil(module, args, output: torch.Tensor) -> None:
        output.register_hook(lambda grad: grad * float("nan"))

    handle = head.register_forward_hook(spoil) if rank() == 1 else None
    loss, _, _ = engine.forward(share(make_batch(5)))
    norm, accepted = engine.update(RATE)
    if handle is not None:
        handle.remove()
    return [bool(loss.isfinite()), math.isfinite(norm), accepted]


def state(engine: Engine) -> list[torch.Tensor]:
    """Copies of the weights that the forward uses, and of this rank's master weights, moments and step counts."""
    tensors = list(full_parameters(engine).values())
    for part in master_state.slices(engine):
        tensors += part.tensors.values()
    for kept in engine.deepspeed.basic_optimizer.state.values():
        tensors.append(torch.as_tensor(kept["step"]))
    return [tensor.detach().clone() for tensor in tensors]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))
