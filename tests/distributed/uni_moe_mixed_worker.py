"""One rank of tests/distributed/test_uni_moe_mixed_ranks.py: conversations with media on one rank, text alone on the other."""

import json
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from helpers.ranks import leave
from helpers.small_run import full_parameters, make_run
from helpers.uni_moe_models import AUDIO, IMAGE, MEDIA, media, uni_moe_config
from imp_ds.families.build import build_module
from imp_ds.families.uni_moe.train_module import UniMoeForTraining
from imp_ds.parallel.groups import is_main, rank, world_size
from imp_ds.tasks import Batch
from imp_ds.train.engine import ds_config
from imp_ds.train.engine.engine import Engine, start_process_group

STEPS = 3
# (ZeRO stage, ep_size)
LAYOUTS = [(2, 1), (2, 2), (3, 1), (3, 2)]
_SHAPES = {"image": {"pixel_values": MEDIA["image"]}, "audio": {"input_features": MEDIA["audio"]}}
_NAMES = {"image": "pixel_values", "audio": "input_features"}
# ids and where the answer begins; of step s the rows are rotated by s, so that each rank has media in some step
ROWS = [
    ([5, *[IMAGE] * 4, 6, 7, 8], 6), ([9, *[AUDIO] * 5, 10, *[IMAGE] * 4, 11, 12, 13, 14], 11), ([15, 16, 17, 18, 19], 2),
    ([20, 21, 22], 1),
]  # fmt: skip


def config():
    connectors = {"image": {"kind": "mlp2x_gelu", "pool": 2}, "audio": {"kind": "qformer", "queries": 5}}
    towers = {"image": "vision", "audio": "audio"}
    return uni_moe_config(num_experts=4, media_shapes=_SHAPES, towers=towers, connectors=connectors)


def batch(step: int, rows: slice) -> Batch:
    """These rows of the global batch of a step, as the loader gives them: kinds that none of them has are not there."""
    order = [(place + 2 * step) % len(ROWS) for place in range(len(ROWS))][rows]
    longest = max(len(ROWS[place][0]) for place in order)
    ids, labels = torch.zeros(len(order), longest, dtype=torch.int64), torch.full((len(order), longest), -100)
    for row, place in enumerate(order):
        tokens, answer = ROWS[place]
        ids[row, : len(tokens)] = torch.tensor(tokens)
        labels[row, answer : len(tokens)] = ids[row, answer : len(tokens)]
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    for kind, token, tokens in (("image", IMAGE, 4), ("audio", AUDIO, 5)):
        counts = (ids == token).sum(1) // tokens
        if counts.any():
            inputs[f"{kind}_count"] = counts
            inputs[_NAMES[kind]] = torch.stack([media(kind, int(counts.max()), seed=place) for place in order])
    return Batch("mixed", {"messages": inputs}, {"labels": labels})


def build(ep_size: int) -> UniMoeForTraining:
    model = build_module(UniMoeForTraining, config(), 0, ep_size)
    for name in ("vision_tower", "audio_tower"):
        getattr(model.uni_moe, name).requires_grad_(False)
    return model


def train(folder: str, learning_rate: float) -> None:
    """Of each layout the losses of the global batch and the gradient norms, and the weights."""
    device = start_process_group(60)
    for stage, ep_size in LAYOUTS:
        run = make_run(ep_size=ep_size, clip=0.0)
        ds = ds_config.load(ds_config.default_path(ep_size, "cpu"))
        ds["zero_optimization"]["stage"] = stage
        engine = Engine(build(ep_size), ds_config.resolve(ds, run, world_size()), weight_decay=0.01, device=device)
        found = []
        for step in range(STEPS):
            own = len(ROWS) // world_size()
            loss, _, _ = engine.forward(batch(step, slice(rank() * own, (rank() + 1) * own)))
            norm, _ = engine.update(learning_rate)
            mean = loss.detach().clone()
            dist.all_reduce(mean)
            found.append([mean.item() / world_size(), float(norm)])
        weights = full_parameters(engine)
        if is_main():
            name = f"zero{stage}_ep{ep_size}"
            (Path(folder) / f"{name}.json").write_text(json.dumps(found))
            save_file({key: value.contiguous() for key, value in weights.items()}, Path(folder) / f"{name}.safetensors")
    leave()
