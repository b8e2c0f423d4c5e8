"""One rank of tests/distributed/test_rank_free_randomness.py: train with all that is random, and write what came of it."""

import json
from pathlib import Path

import torch.distributed as dist
from safetensors.torch import save_file

from helpers.ranks import leave
from helpers.small_run import full_parameters
from imp_ds.config import RunConfig
from imp_ds.data.loading.collation import Collator
from imp_ds.data.loading.loader import RotatingLoader
from imp_ds.data.loading.step_batches import StepBatches
from imp_ds.families.build import build_module
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.parallel.groups import is_main, rank, world_size
from imp_ds.randomness import derive
from imp_ds.recipes import get_recipe
from imp_ds.train.engine import ds_config
from imp_ds.train.engine.engine import Engine, start_process_group
from imp_ds.train.processor import init_processor
from imp_ds.train.schedule import build_schedule
from imp_ds.train.start import open_readers

STEPS = 10


def make_run(corpus: str, ep_size: int, checkpointing: bool) -> RunConfig:
    """The six tasks of digits_debug with dropout, routing noise and, wherever there are tokens to drop, DropToken."""
    run = get_recipe("digits_debug")
    run.data.root, run.train.ep_size, run.train.gradient_checkpointing = corpus, ep_size, checkpointing
    run.model.hidden_dropout, run.model.router_noise = 0.2, 1.0
    for task in run.tasks:
        for view in (task.views.vision, task.views.audio):
            if view is not None:
                view.drop_rate = 0.25
    return run


def train(folder: str, corpus: str, cases: dict[str, dict]) -> None:
    """For each case, the losses of the global batches in {name}.json and the weights in {name}.safetensors.

    A case is {"ds": file, "ep_size", "checkpointing", "micro_batches", "other_keys"}; the last replaces the samples' keys by
    others.
    """
    device = start_process_group(60)
    for name, case in cases.items():
        run = make_run(corpus, case.get("ep_size", 1), case.get("checkpointing", False))
        readers = open_readers(run)
        processor = init_processor(run, readers, Path(folder), None)
        engine = _engine(run, run.model.to_config(len(processor.tokenizer), run.tasks), case.get("ds", "cpu_zero2.json"), device)
        batches = StepBatches(
            run.tasks, build_schedule("rotation", run.tasks, 0), readers, Collator(processor), seed=run.data.seed, rank=rank(),
            world=world_size(),
        )  # fmt: skip
        loader = RotatingLoader(batches, stop_step=STEPS, workers=0)
        losses = [_step(engine, batch, case) for batch in loader]
        weights = full_parameters(engine)
        if is_main():
            (Path(folder) / f"{name}.json").write_text(json.dumps(losses))
            save_file({key: value.contiguous() for key, value in weights.items()}, Path(folder) / f"{name}.safetensors")
    leave()


def _engine(run: RunConfig, config, file: str, device) -> Engine:
    ds = ds_config.resolve(ds_config.load(ds_config.FOLDER / file), run, world_size())
    model = build_module(ImpForPreTraining, config, 0, run.train.ep_size)
    if run.train.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return Engine(model, ds, weight_decay=run.optimizer.weight_decay, device=device)


def _step(engine: Engine, batch, case: dict) -> float:
    """One optimizer step; the loss of the global batch."""
    if case.get("other_keys", False):
        batch.key_B = derive(batch.key_B, 0)
    loss, _, _ = engine.forward(batch, case.get("micro_batches", 1))
    engine.update(1e-3)
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    return mean.item() / world_size()
