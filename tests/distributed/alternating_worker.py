"""One rank of tests/distributed/test_alternating.py: every shipped configuration against one process without DeepSpeed.

It writes, as JSON, for each configuration and step the loss and the gradient norm of both, and "change": the largest
difference between the changes of a parameter in this step.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import torch

from helpers.ranks import leave
from helpers.small_run import full_parameters, largest_difference, make_batch, make_config, make_engine, make_run, step_engine
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.models.initialization import initialize_seeded
from imp_ds.parallel.groups import is_main
from imp_ds.tasks import Batch
from imp_ds.train.engine import ds_config
from imp_ds.train.engine.engine import Engine, start_process_group

STEPS = 7  # every task is idle after it has been trained, and comes back


def rate(step: int) -> float:
    return 1e-3 * (step + 1) / STEPS


def reference(run, make: Callable[[int], Batch] = make_batch) -> list[dict]:
    """Loss, gradient norm and parameters of each step of plain torch, whose batch is `make(step)`: one AdamW, gradients of zero
    for what is idle. Called before the ranks join, so that the objectives see a world of one and the whole batch."""
    config = make_config(run)
    model = ImpForPreTraining(config)
    initialize_seeded(model, 0, config.initializer_range)
    decayed = [p for n, p in model.named_parameters() if is_kernel(n, p)]
    others = [p for n, p in model.named_parameters() if not is_kernel(n, p)]
    groups = [{"params": decayed, "weight_decay": run.optimizer.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=run.optimizer.betas, eps=run.optimizer.eps)
    steps = [{"parameters": {n: p.detach().clone() for n, p in model.named_parameters()}}]
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        loss, _, _ = model(make(step))
        optimizer.zero_grad()
        loss.backward()
        for parameter in model.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), run.optimizer.clip or float("inf"))
        optimizer.step()
        parameters = {n: p.detach().clone() for n, p in model.named_parameters()}
        steps.append({"loss": loss.item(), "norm": norm.item(), "parameters": parameters})
    return steps


def is_kernel(name: str, parameter: torch.Tensor) -> bool:
    """What weight decay acts on, said once more by names: matrices, without the tables of positions and of words."""
    table = name.startswith("imp.embeddings.") and not name.endswith("patch.weight")
    return parameter.ndim >= 2 and not table


def compare(
    run, ds, expected: list[dict], device, make: Callable[[int], Batch] = make_batch, micro_batches: int = 1, prepare_model=None
) -> list[dict]:
    engine = make_engine(run, ds, device, prepare_model=prepare_model)
    before, found = full_parameters(engine), []
    for step in range(STEPS):
        loss, norm = step_engine(engine, make(step), rate(step), micro_batches)
        now = full_parameters(engine)
        changes = {n: now[n] - before[n] for n in now}
        wanted = {n: expected[step + 1]["parameters"][n] - expected[step]["parameters"][n] for n in now}
        found.append(
            dict(loss=loss, reference_loss=expected[step + 1]["loss"], norm=norm, reference_norm=expected[step + 1]["norm"],
                 change=largest_difference(changes, wanted))
        )  # fmt: skip
        before = now
    return found


def compare_all(out: str) -> None:
    clipped, unclipped = reference(make_run()), reference(make_run(clip=0.0))
    device = start_process_group(60)
    files = {path.stem.removeprefix("cpu_"): ds_config.load(path) for path in sorted(ds_config.FOLDER.glob("cpu_*.json"))}
    files["zero3_offload"] = copy.deepcopy(files["zero3"])
    files["zero3_offload"]["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    files["zero3_offload"]["zero_force_ds_cpu_optimizer"] = False
    results = {}

    def record(name: str, ds: dict, ep_size: int) -> None:
        clip = 0.0 if ds["zero_optimization"]["stage"] == 0 else 0.1  # clipping at ZeRO 0 with experts is refused
        results[name] = compare(make_run(ep_size=ep_size, clip=clip), ds, clipped if clip else unclipped, device)

    for name, ds in files.items():
        for ep_size in (1, 2):
            if ds.get("imp_ds", {}).get("ep_size", ep_size) == ep_size:
                record(f"{name}_ep{ep_size}", ds, ep_size)
    Engine._clear_stale_gradients = lambda self: None
    for name in ("zero2_offload", "zero3", "zero3_offload"):
        record(f"{name}_without_remedy", files[name], 2)
    if is_main():
        Path(out).write_text(json.dumps(results))
    leave()
