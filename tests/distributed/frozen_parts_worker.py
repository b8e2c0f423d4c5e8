"""One rank of tests/distributed/test_frozen_parts.py: a Uni-MoE of which connectors and routers are trained, in several layouts.

Shapes: B conversations, L tokens.
"""

import json
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from helpers.chat_run import make_chat_run
from helpers.ranks import leave
from helpers.small_run import full_parameters, share
from imp_ds.families import family_of
from imp_ds.parallel.groups import is_main, world_size
from imp_ds.tasks import Batch
from imp_ds.train import checkpoint
from imp_ds.train.engine import ds_config
from imp_ds.train.engine.engine import start_process_group
from imp_ds.train.start import start_engine

STEPS, RATE, B, L = 2, 1e-2, 4, 24
TRAINED = ["uni_moe.connectors.*", "*router.weight"]
TOKENS = {"image": 4, "video": 4, "audio": 5}
CPU = {"device": "cpu", "pin_memory": False}


class Layout(NamedTuple):
    stage: int
    again: bool = False  # activation checkpointing
    offload: tuple[str, ...] = ()
    ep_size: int = 1

    def __str__(self) -> str:
        return "_".join([f"zero{self.stage}_ep{self.ep_size}", *self.offload] + ["again"] * self.again)


LAYOUTS = [
    Layout(0, again=True), Layout(1, again=True, offload=("optimizer",)), Layout(2, again=True, ep_size=2),
    Layout(2, offload=("optimizer",)), Layout(3, ep_size=2), Layout(3, again=True, offload=("optimizer", "param")),
]  # fmt: skip


def run_of(layout: Layout):
    train = dict(trainable=TRAINED, gradient_checkpointing=layout.again, ep_size=layout.ep_size)
    run = make_chat_run(Path("none"), train=train)
    run.optimizer.clip, run.optimizer.weight_decay = 0.0, 1e-2
    return run.model_copy(update={"model": run.model.model_copy(update={"num_experts": 4})})


def batch_of(step: int, config) -> Batch:
    """Each conversation with an image and a sound, the first half with a video too, so that the second rank has none; answers of
    unlike lengths."""
    draw = torch.Generator().manual_seed(step)
    ids_BL = torch.randint(0, 120, (B, L), generator=draw)
    inputs = {"attention_mask": torch.ones(B, L, dtype=torch.int64)}
    begin = 0
    for kind, count in TOKENS.items():
        rows = B // 2 if kind == "video" else B
        ids_BL[:rows, begin : begin + count] = config.token_id(kind)
        begin += count
        inputs[f"{kind}_count"] = (torch.arange(B) < rows).long()
        for name, shape in config.media_shapes[kind].items():
            inputs[name] = torch.randn(B, 1, *shape, generator=draw)
    labels_BL = ids_BL.clone()
    labels_BL[:, :begin], labels_BL[0, begin:-1] = -100, -100
    return Batch("chat", {"messages": {"input_ids": ids_BL, **inputs}}, {"labels": labels_BL})


def own_part(batch: Batch) -> Batch:
    """This rank's rows, without the media that none of them has, as the loader gives them."""
    part = share(batch)
    inputs = part.inputs["messages"]
    if not inputs["video_count"].any():
        inputs.pop("pixel_values_videos")
    return part


def main(folder: str) -> None:
    device = start_process_group(60)
    torch.set_num_threads(1)
    for layout in LAYOUTS:
        found = train(layout, Path(folder) / str(layout), device)
        if is_main():
            (Path(folder) / f"{layout}.json").write_text(json.dumps(found))
    leave()


def train(layout: Layout, folder: Path, device) -> dict:
    run = run_of(layout)
    config = family_of(run).config(run)
    ds = ds_config.load(ds_config.default_path(layout.ep_size, "cpu"))
    ds["zero_optimization"] |= {"stage": layout.stage} | {f"offload_{what}": CPU for what in layout.offload}
    engine, frozen = start_engine(run, config, ds_config.resolve(ds, run, world_size()), device, None, None, folder)
    steps = [step(engine, own_part(batch_of(number, config))) for number in range(STEPS)]
    moments = torch.tensor([float(sum(state["exp_avg"].numel() for state in states(engine)))])
    dist.all_reduce(moments)
    saved = checkpoint.save(engine, folder, STEPS, {"step": STEPS, "adam_steps": STEPS}, keep=1, frozen=frozen)
    weights = full_parameters(engine)
    if is_main():
        save_file({name: value.contiguous() for name, value in weights.items()}, folder.with_suffix(".safetensors"))
    return {"steps": steps, "moments": int(moments), "checkpoint": str(saved)}


def step(engine, part: Batch) -> list[float]:
    """The loss of the global batch, and the norm of its gradient."""
    loss = engine.forward(part).loss.detach().clone()
    norm, _ = engine.update(RATE)
    dist.all_reduce(loss)
    return [loss.item() / world_size(), float(norm)]


def states(engine) -> list[dict]:
    """What AdamW keeps of each tensor that it updates."""
    optimizer = engine.deepspeed.optimizer
    while not getattr(optimizer, "state", None) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return [state for state in optimizer.state.values() if "exp_avg" in state]

