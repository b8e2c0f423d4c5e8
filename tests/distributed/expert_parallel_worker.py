"""One rank of tests/distributed/test_expert_parallel.py: train, and write what came of it."""

import json
from pathlib import Path

import torch.distributed as dist
from safetensors.torch import save_file
from small_run import full_parameters, make_batch, make_engine, make_run, step_engine

from imp_ds.parallel.groups import is_main
from imp_ds.train.engine import start_process_group

STEPS = 20


def train(folder: str, ep_size: int, models: dict[str, dict]) -> None:
    """For each named model, the losses of the global batch in {name}.json and the weights in {name}.safetensors."""
    device = start_process_group(60)
    for name, settings in models.items():
        engine = make_engine(make_run(ep_size=ep_size, **settings), f"cpu_zero2{'_ep2' if ep_size == 2 else ''}.json", device)
        losses = [step_engine(engine, make_batch(step), 1e-3)[0] for step in range(STEPS)]
        weights = full_parameters(engine)
        if is_main():
            (Path(folder) / f"{name}.json").write_text(json.dumps(losses))
            save_file({key: value.contiguous() for key, value in weights.items()}, Path(folder) / f"{name}.safetensors")
    dist.barrier()
    dist.destroy_process_group()
