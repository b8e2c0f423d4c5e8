"""One rank of tests/distributed/test_lora_ranks.py: train LoRA beside frozen experts in several layouts, and keep the outcome."""

from pathlib import Path
from typing import NamedTuple

import torch

from helpers.ranks import leave
from helpers.small_run import step_engine, write_outcome
from helpers.upcycled_run import SAMPLES, batch_of, config_of, make_run
from imp_ds.config import RunConfig
from imp_ds.models.uni_moe.lora import LoraSettings
from imp_ds.parallel.groups import world_size
from imp_ds.randomness import sample_keys
from imp_ds.tasks import Batch
from imp_ds.train import checkpoint
from imp_ds.train.engine import ds_config
from imp_ds.train.engine.engine import start_process_group
from imp_ds.train.start import start_engine

STEPS, RATE = 10, 3e-3
TRAINED = ["*.lora.*", "*.router.weight"]
TARGETS = dict(target_modules=["q_proj", "o_proj"], target_parameters=["experts.gate_up_proj", "experts.w2"])


class Layout(NamedTuple):
    ranks: int
    ep_size: int
    stage: int
    dropout: float = 0.0
    checkpointing: bool = False

    def __str__(self) -> str:
        name = f"ranks{self.ranks}_ep{self.ep_size}_zero{self.stage}"
        return name + "_dropout" * bool(self.dropout) + "_again" * self.checkpointing

    def run(self, base: Path) -> RunConfig:
        lora = LoraSettings(r=3, lora_alpha=6, lora_dropout=self.dropout, **TARGETS)
        return make_run(base, ep_size=self.ep_size, trainable=TRAINED, checkpointing=self.checkpointing, lora=lora)


def keyed_batch(step: int) -> Batch:
    """Answers of one supervised token to many, with random keys."""
    batch = batch_of(step)
    batch.key_B = sample_keys(0, step, 0, SAMPLES)
    return batch


def train(folder: str, base: str, layouts: list[Layout]) -> None:
    """Of each layout the losses of the global batch and the gradient norms in {layout}.json, the weights in a file beside it, and
    a checkpoint, with the moments of gradients, in the folder {layout}."""
    device = start_process_group(60)
    torch.set_num_threads(1)
    for layout in layouts:
        run, own = layout.run(Path(base)), Path(folder) / str(layout)
        ds = ds_config.load(ds_config.default_path(layout.ep_size, "cpu"))
        ds["zero_optimization"]["stage"] = layout.stage
        engine, frozen = start_engine(run, config_of(run), ds_config.resolve(ds, run, world_size()), device, None, None, own)
        found = [step_engine(engine, keyed_batch(step), RATE) for step in range(STEPS)]
        checkpoint.save(engine, own, STEPS, {"step": STEPS, "adam_steps": STEPS}, keep=1, frozen=frozen)
        write_outcome(engine, found, folder, str(layout))
    leave()
