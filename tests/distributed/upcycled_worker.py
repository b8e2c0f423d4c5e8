"""One rank of tests/distributed/test_upcycled.py: start from a base in several layouts, train, and write what came of it."""

import json
from pathlib import Path
from typing import NamedTuple

import torch

from helpers.ranks import leave
from helpers.small_run import step_engine, write_outcome
from helpers.upcycled_run import batch_of, config_of, make_run
from imp_ds.parallel.groups import is_main, world_size
from imp_ds.train import checkpoint
from imp_ds.train.engine import ds_config
from imp_ds.train.engine.engine import start_process_group
from imp_ds.train.start import start_engine

STEPS = 3
LOSSES = dict(router_z_loss=0.01, router_balance=0.1)


class Layout(NamedTuple):
    ranks: int
    ep_size: int
    stage: int
    kind: str = "llama"
    trainable: tuple[str, ...] = ()
    checkpointing: bool = False
    losses: bool = False

    def __str__(self) -> str:
        parts = [f"ranks{self.ranks}_ep{self.ep_size}_zero{self.stage}_{self.kind}"]
        return "_".join(parts + ["frozen"] * bool(self.trainable) + ["again"] * self.checkpointing + ["losses"] * self.losses)

    def run(self, bases: Path):
        settings = LOSSES if self.losses else {}
        return make_run(
            bases / self.kind, ep_size=self.ep_size, trainable=list(self.trainable) or None, checkpointing=self.checkpointing,
            **settings,
        )  # fmt: skip


def train(folder: str, bases: str, handed: list[Layout], layouts: list[Layout]) -> None:
    """Of each layout the losses of the global batch and the gradient norms in {layout}.json, the weights in a file beside it. In
    handed.json and beside it: of a run that goes on from a checkpoint in the next layout after every step, all of one size."""
    device = start_process_group(60)
    torch.set_num_threads(1)
    for layout in layouts:
        engine, _ = start(layout, Path(folder) / str(layout), Path(bases), device)
        write_outcome(engine, [step_engine(engine, batch_of(step), 1e-2) for step in range(STEPS)], folder, str(layout))
    handed = [layout for layout in handed if layout.ranks == world_size()]
    found, run_folder, reader = [], Path(folder) / "handed", None
    for step, layout in enumerate(handed):
        engine, frozen = start(layout, run_folder, Path(bases), device, reader)
        found.append(step_engine(engine, batch_of(step), 1e-2))
        saved = checkpoint.save(engine, run_folder, step + 1, {"step": step + 1, "adam_steps": step + 1}, keep=2, frozen=frozen)
        reader = checkpoint.Reader(saved)
    if handed:
        write_outcome(engine, found, folder, "handed")
        files = sorted({Path(entry["path"]).name for entry in frozen.references.values()})
        (run_folder / "references.json").write_text(json.dumps(files)) if is_main() else None
    leave()


def start(layout: Layout, folder: Path, bases: Path, device, reader: checkpoint.Reader | None = None):
    """Engine and what is frozen, as a run starts them."""
    run = layout.run(bases)
    ds = ds_config.load(ds_config.default_path(layout.ep_size, "cpu"))
    ds["zero_optimization"]["stage"] = layout.stage
    return start_engine(run, config_of(run), ds_config.resolve(ds, run, world_size()), device, reader, None, folder)
