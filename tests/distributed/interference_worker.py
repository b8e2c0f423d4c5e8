"""One rank of tests/distributed/test_interference_ranks.py: train, measure between two steps, train on."""

import json
from pathlib import Path

import torch.distributed as dist
from safetensors.torch import save_file

from helpers.small_run import ORDER, make_batch, make_engine, make_run, share, step_engine
from imp_ds.evaluation.interference import interference
from imp_ds.parallel.groups import is_main
from imp_ds.train.engine.engine import start_process_group
from imp_ds.train.interference import GradientRounds, chosen_weights

STEPS = 6
SAMPLES = 4


def measure(folder: str, ep_size: int) -> None:
    """{measured or not}.json: the losses of 6 steps, between the third and fourth of which interference is measured or not;
    {name of the weight}: the matrix, in matrices.safetensors."""
    device = start_process_group(60)
    for measured in (True, False):
        engine = make_engine(make_run(ep_size=ep_size), f"cpu_zero2{'_ep2' if ep_size == 2 else ''}.json", device)
        losses = []
        for step in range(STEPS):
            if measured and step == STEPS // 2:
                batch_of = lambda task, number: share(make_batch(len(ORDER) * number + task))  # noqa: E731
                rounds = GradientRounds(engine.model, batch_of, len(ORDER), SAMPLES, chosen_weights(engine.model))
                found = interference(ORDER, rounds)
            losses.append(step_engine(engine, make_batch(step), 1e-3)[0])
        if is_main():
            (Path(folder) / f"{measured}.json").write_text(json.dumps(losses))
    if is_main():
        save_file({name: part.matrix_KK for name, part in found.items()}, Path(folder) / "matrices.safetensors")
    dist.barrier()
    dist.destroy_process_group()
