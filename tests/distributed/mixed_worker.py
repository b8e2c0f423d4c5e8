"""One rank of tests/distributed/test_mixed_tasks.py: steps of two ranks whose tasks differ, and gradients of a given norm,
against one process without DeepSpeed.

It writes, as JSON, for each case the largest difference between the weights after the last step, and between the norms.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from alternating_worker import is_kernel

from helpers.ranks import leave
from helpers.small_run import ORDER, full_parameters, largest_difference, make_batch, make_config, make_engine, make_run, share
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.models.initialization import initialize_seeded
from imp_ds.parallel.groups import is_main, rank
from imp_ds.tasks import Batch
from imp_ds.train.engine.engine import start_process_group
from imp_ds.train.recording.step_means import StepMeans

STEPS, RATE, RANKS = 10, 1e-3, 2
TARGET_NORMS = {"image_text": 1.0, "speech_text": 0.5, "image_class": 2.0}
# case -> DeepSpeed configuration, and what differs from one micro-batch, ep_size 1, no norm
MIXED = {
    "zero0": {}, "zero1": {}, "zero2": {}, "zero2_offload": {}, "zero2_micro_batches": dict(micro_batches=2),
    "zero2_target_norm": dict(target_norm=True),
    "zero2_experts": dict(ep_size=2),
}  # fmt: skip
SHARED = {f"zero{stage}_{ep_size}": dict(ep_size=ep_size) for stage in (0, 1, 2, 3) for ep_size in (1, 2)}


def task_of(step: int, of: int, together: bool) -> str:
    """The ranks' tasks never agree, and every rank leaves and comes back to each; `together`: they always do."""
    return ORDER[(step + (0 if together else of)) % 3]


def rank_batch(step: int, of: int, together: bool = False) -> Batch:
    """The batch of a rank in a step: the half that is its own of a global batch of its task."""
    batch = make_batch(3 * step + ORDER.index(task_of(step, of, together)))
    return batch.map(lambda x: x.chunk(RANKS)[of])


def run_of(schedule: str, ep_size: int = 1, weight: float = 1.0):
    """Without clipping. weight: of the losses of image_class, beside which there are none of routers where tasks are shared."""
    run = make_run(ep_size=ep_size, clip=0.0, router_z_loss=0.01 if schedule == "sampling_per_rank" else 0.0)
    run.train.schedule = schedule
    run.task("image_class").objectives[0].weight = weight
    return run


def reference(run, gradients: Callable[[ImpForPreTraining, int], Iterator[tuple[float, list[torch.Tensor]]]]) -> dict:
    """The weights after all steps of plain AdamW, and the norms. `gradients(model, step)` gives (weight in the sum, gradient)."""
    config = make_config(run)
    model = ImpForPreTraining(config)
    initialize_seeded(model, 0, config.initializer_range)
    named, parameters = list(model.named_parameters()), list(model.parameters())
    groups = [
        {"params": [p for n, p in named if is_kernel(n, p) == kernel], "weight_decay": run.optimizer.weight_decay * kernel}
        for kernel in (True, False)
    ]
    optimizer, norms = torch.optim.AdamW(groups, lr=RATE, betas=run.optimizer.betas, eps=run.optimizer.eps), []
    for step in range(STEPS):
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        for factor, found in gradients(model, step):
            for parameter, gradient in zip(parameters, found):
                parameter.grad += factor * gradient
        norms.append(total_norm([p.grad for p in parameters]))
        optimizer.step()
    return {"parameters": {n: p.detach().clone() for n, p in named}, "norms": norms}


def total_norm(gradients: list[torch.Tensor]) -> float:
    return torch.cat([gradient.flatten() for gradient in gradients]).double().norm().item()


def gradient(model: ImpForPreTraining, batch: Batch) -> list[torch.Tensor]:
    loss, _, _ = model(batch)
    return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)


def own_gradients(target_norm: bool, together: bool):
    """The mean over the ranks of each one's own gradient, first rescaled to its norm or not; before the ranks join, so that every
    batch is compared with itself alone."""

    def of_step(model: ImpForPreTraining, step: int):
        for of in range(RANKS):
            found = gradient(model, rank_batch(step, of, together))
            wanted = TARGET_NORMS[task_of(step, of, together)] / total_norm(found) if target_norm else 1.0
            yield wanted / RANKS, found

    return of_step


def global_gradient(model: ImpForPreTraining, step: int):
    """That of the global batch, with the norm of its task."""
    found = gradient(model, make_batch(step))
    yield TARGET_NORMS[ORDER[step % 3]] / total_norm(found), found


def measure_mixed(
    name: str, expected: dict, device, *, micro_batches: int = 1, target_norm: bool = False, ep_size: int = 1
) -> dict:
    run = run_of("sampling_per_rank", ep_size)
    file = name.removesuffix("_micro_batches").removesuffix("_target_norm").removesuffix("_experts")
    engine = make_engine(run, f"cpu_{file}.json", device)
    norms, together = [], ep_size > 1
    for step in range(STEPS):
        engine.forward(rank_batch(step, rank(), together), micro_batches)
        wanted = TARGET_NORMS[task_of(step, rank(), together)] if target_norm else None
        norms.append(engine.update(RATE, target_norm=wanted)[0])
    return compared(engine, norms, expected)


def measure_shared(name: str, expected: dict, device, *, ep_size: int, weight: float = 1.0) -> dict:
    engine = make_engine(run_of("rotation", ep_size, weight), f"cpu_{name.split('_')[0]}.json", device)
    for step in range(STEPS):
        engine.forward(share(make_batch(step)))
        engine.update(RATE, target_norm=TARGET_NORMS[ORDER[step % 3]])
    return compared(engine, None, expected)


def compared(engine, norms: list[float] | None, expected: dict) -> dict:
    found = {"weights": largest_difference(full_parameters(engine), expected["parameters"])}
    if norms is not None:
        found["norms"] = max(abs(a - b) / b for a, b in zip(norms, expected["norms"]))
    return found


def means_of_steps() -> list:
    """Three steps of two ranks: other tasks, the same, and other ones again, of which one loss is not a number."""
    mixtures = [{"a": 0.5, "b": 0.5}, {"b": 1.0}, {"a": 0.5, "b": 0.5}]
    reported = [
        [("a", dict(loss=1.0, near=3.0)), ("b", dict(loss=2.0, far=5.0, waited=7.0))],
        [("b", dict(loss=1.0, far=2.0, waited=3.0)), ("b", dict(loss=3.0, far=4.0, waited=8.0))],
        [("b", dict(loss=float("nan"), far=1.0, waited=0.0)), ("a", dict(loss=4.0, near=1.0))],
    ]
    means, found = StepMeans(lambda step: mixtures[step]), []
    for step, of_ranks in enumerate(reported):
        task, values = of_ranks[rank()]
        values = values | {"loss": torch.tensor(values["loss"])}  # the rest are numbers
        facts, of_tasks = means(step, task, [True, rank() == 0 or step == 1], values)
        found.append([facts, of_tasks])
    return found


def measure_all(out: str) -> None:
    expected = {
        name: reference(run_of("sampling_per_rank"), own_gradients(case.get("target_norm", False), "ep_size" in case))
        for name, case in MIXED.items()
        if name in ("zero0", "zero2_target_norm", "zero2_experts")
    }
    of_target_norm = reference(run_of("rotation"), global_gradient)
    device = start_process_group(60)
    results = {"mixed": {}, "shared": {}}
    for name, case in MIXED.items():
        results["mixed"][name] = measure_mixed(name, expected.get(name, expected["zero0"]), device, **case)
    for name, case in SHARED.items():
        results["shared"][name] = measure_shared(name, of_target_norm, device, **case)
    results["shared"]["zero2_louder"] = measure_shared("zero2", of_target_norm, device, ep_size=1, weight=100.0)
    results["means"] = means_of_steps()
    if is_main():
        Path(out).write_text(json.dumps(results))
    leave()
