"""One rank of tests/distributed/test_causal_family.py: train the causal model in several layouts, and write what came of it."""

from typing import NamedTuple

from helpers.causal_model import build_causal, text_batch
from helpers.ranks import leave
from helpers.small_run import make_run, step_engine, write_outcome
from imp_ds.parallel.groups import world_size
from imp_ds.train.engine import ds_config
from imp_ds.train.engine.engine import Engine, start_process_group

STEPS = 3


class Layout(NamedTuple):
    ranks: int
    ep_size: int
    stage: int
    drop_tokens: bool
    micro_batches: int = 1

    def __str__(self) -> str:
        router = "capacity" if self.drop_tokens else "drop_free"
        return f"ranks{self.ranks}_ep{self.ep_size}_zero{self.stage}_{router}_micro{self.micro_batches}"


def train(folder: str, layouts: list[Layout]) -> None:
    """Of each layout the losses of the global batch and the gradient norms in {layout}.json, the weights in a file beside it."""
    device = start_process_group(60)
    for layout in layouts:
        run = make_run(ep_size=layout.ep_size, clip=0.0)
        ds = ds_config.load(ds_config.default_path(layout.ep_size, "cpu"))
        ds["zero_optimization"]["stage"] = layout.stage
        model = build_causal(0, layout.ep_size, layout.drop_tokens)
        engine = Engine(model, ds_config.resolve(ds, run, world_size()), weight_decay=0.01, device=device)
        found = [step_engine(engine, text_batch(step), 1e-2, layout.micro_batches) for step in range(STEPS)]
        write_outcome(engine, found, folder, str(layout))
    leave()
