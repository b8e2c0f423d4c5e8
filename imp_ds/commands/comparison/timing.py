"""How long a training step and an inference of each router take: of trained models, all in one process and in turns, so that
whatever else the machine does falls on all of them alike.

A step is forward, backward and the update by the engine that trains, on the first batch of each task; its learning rate is 0, so
that the models stay as they are. An inference is the encoding of what a task reads, with the task's condition: by the model that
`export` writes, merged where the gate allows it.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from imp_ds.commands.comparison.job import Job
from imp_ds.commands.export import export
from imp_ds.commands.exported_model import load_model
from imp_ds.config import RunConfig
from imp_ds.data.corpus import open_corpus
from imp_ds.data.loading.collation import Collator
from imp_ds.data.loading.step_batches import StepBatches
from imp_ds.errors import UserError
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.tasks import Batch
from imp_ds.train.engine import ds_config
from imp_ds.train.engine.engine import Engine, process_group
from imp_ds.train.schedule import Rotation, build_schedule
from imp_ds.train.trained_run import TrainedRun, open_run

WARM_UP = 2
_TIMEOUT_S = 600.0
EQUAL = 1e-5  # as large as a merged model's outputs may differ, against the largest of the model with experts


@contextmanager
def timing_process() -> Iterator[torch.device]:
    """This process as the only rank of a group, with one thread: what is timed has the same as any other."""
    threads = torch.get_num_threads()
    with process_group(_TIMEOUT_S) as device:
        torch.set_num_threads(1)
        try:
            yield device
        finally:
            torch.set_num_threads(threads)


def time_routers(
    jobs: list[Job], models: Path, device: torch.device, *, rounds: int, progress: Callable[[str, int, int], None]
) -> dict[str, dict]:
    """{router: {"train_s": {task: s}, "step_s": mean over the run's steps, "inference_s": {task: s}, "encode_s": mean over the
    tasks, "parameters": of the exported model, "merged_difference": or None}}, medians over the rounds.

    Args:
        jobs: finished ones, of one seed.
        models: folder for the exported models, {router}_{seed}; one that is there is taken.
        device: of `timing_process`, inside which this is called.
        progress: called with ("timing", rounds done, rounds in all).

    Raises UserError when a merged model does not answer as the one with experts does.
    """
    trained = {job.variant: open_run(job.folder) for job in jobs}
    batches = first_batches(next(iter(trained.values())), device)
    encoders = {job.variant: exported(job, trained[job.variant], models, device) for job in jobs}
    found = {router: measure_model(router, *encoders[router], batches) for router in trained}
    engines = {router: make_engine(one, device) for router, one in trained.items()}
    calls = {("train", *key): call for key, call in training_calls(engines, batches).items()}
    calls |= {("encode", *key): call for key, call in encoding_calls(encoders, batches).items()}
    seconds = medians_in_turns(calls, rounds, device, progress)
    for router, one in trained.items():
        found[router] |= summary(one.run, *({t: seconds[kind, router, t] for t in batches} for kind in ("train", "encode")))
    return found


def first_batches(trained: TrainedRun, device: torch.device) -> dict[str, Batch]:
    """The first batch of each task, as training has it."""
    run = trained.run
    each_in_turn = Rotation({task.name: 1 for task in run.tasks})
    batches = StepBatches(run.tasks, each_in_turn, open_corpus(run), Collator(trained.processor), seed=run.data.seed)
    found = [batches[step] for step in range(len(run.tasks))]
    if problem := next((batch for batch in found if isinstance(batch, UserError)), None):
        raise problem
    return {batch.task: batch.to(device) for batch in found}


def make_engine(trained: TrainedRun, device: torch.device) -> Engine:
    """The engine of the run with its trained weights."""
    run = trained.run
    ds = ds_config.resolve(ds_config.load(ds_config.default_path(1, device.type)), run, 1)
    return Engine(trained.load_model().train(), ds, weight_decay=run.optimizer.weight_decay, device=device)


def exported(
    job: Job, trained: TrainedRun, models: Path, device: torch.device
) -> tuple[ImpForPreTraining, ImpForPreTraining | None]:
    """What serves the router, and, where that is merged, the model with experts beside it."""
    folder, model = models / job.name, trained.load_model()
    merges = bool(model.config.num_experts) and model.config.has_constant_gate
    if not folder.exists():
        export(job.folder, folder, merge_tasks=[] if merges else None)
    served, _ = load_model(folder)
    return served.to(device).eval(), model.to(device).eval() if merges else None


@torch.no_grad()
def measure_model(
    router: str, served: ImpForPreTraining, with_experts: ImpForPreTraining | None, batches: dict[str, Batch]
) -> dict:
    """Its parameters, and how far a merged one is from the one with experts. Raises UserError when that is too far."""
    difference = None
    if with_experts is not None:
        difference = max(relative_difference(served, with_experts, batch) for batch in batches.values())
        if not difference <= EQUAL:
            raise UserError(
                f"the merged {router} model does not answer as the one with experts does",
                got=f"outputs that differ by {difference:.1e} of the largest", allowed=f"{EQUAL:.0e}",
            )  # fmt: skip
    return {"parameters": sum(p.numel() for p in served.parameters()), "merged_difference": difference}


def relative_difference(one: ImpForPreTraining, other: ImpForPreTraining, batch: Batch) -> float:
    """The largest difference of any token's state, against the largest number in them."""
    answers = [torch.cat([state.flatten() for state in encode(model, batch)]) for model in (one, other)]
    return ((answers[0] - answers[1]).abs().max() / answers[1].abs().max()).item()


def encode(model: ImpForPreTraining, batch: Batch) -> list[torch.Tensor]:
    """The states of all that a batch reads, each modality with the condition of the batch's task."""
    return [
        model.imp.encode(modality, inputs, condition=model.imp.condition(modality, batch.task)).tokens_BLD
        for modality, inputs in batch.inputs.items()
    ]


def training_calls(engines: dict[str, Engine], batches: dict[str, Batch]) -> dict[tuple, Callable[[], None]]:
    """(router, task) -> one optimizer step."""

    def step(engine: Engine, batch: Batch) -> None:
        engine.forward(batch)
        engine.update(0.0)

    return {
        (router, task): lambda engine=engine, batch=batch: step(engine, batch)
        for task, batch in batches.items()
        for router, engine in engines.items()
    }


def encoding_calls(encoders: dict[str, tuple], batches: dict[str, Batch]) -> dict[tuple, Callable[[], None]]:
    """(router, task) -> one batch encoded by what serves the router."""

    @torch.no_grad()
    def answer(model: ImpForPreTraining, batch: Batch) -> None:
        encode(model, batch)

    return {
        (router, task): lambda model=served, batch=batch: answer(model, batch)
        for task, batch in batches.items()
        for router, (served, _) in encoders.items()
    }


def medians_in_turns(
    calls: dict[tuple, Callable], rounds: int, device: torch.device, progress: Callable[[str, int, int], None]
) -> dict[tuple, float]:
    """The median seconds of each call, all of which take turns; the first rounds do not count."""
    taken = {key: [] for key in calls}
    for turn in range(WARM_UP + rounds):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken[key].append(time.perf_counter() - start)
        progress("timing", turn + 1, WARM_UP + rounds)
    return {key: statistics.median(times[WARM_UP:]) for key, times in taken.items()}


def summary(run: RunConfig, train_s: dict[str, float], encode_s: dict[str, float]) -> dict:
    """Seconds by task, and their means: of a step of the run, whose tasks have their shares of the steps, and of an inference."""
    shares = build_schedule(run.train.schedule, run.tasks, run.train.seed).shares()
    return {
        "train_s": train_s, "step_s": sum(shares[task] * seconds for task, seconds in train_s.items()),
        "inference_s": encode_s, "encode_s": statistics.fmean(encode_s.values()),
    }  # fmt: skip
