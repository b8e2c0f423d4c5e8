"""One rank of tests/distributed/test_expert_parallel.py: train, and write what came of it."""

import json
from pathlib import Path

from safetensors.torch import save_file

from helpers.ranks import leave
from helpers.small_run import full_parameters, make_batch, make_engine, make_run, step_engine
from imp_ds.parallel.groups import is_main
from imp_ds.randomness import sample_keys
from imp_ds.tasks import Batch
from imp_ds.train.engine.engine import start_process_group

STEPS = 20


def train(folder: str, ep_size: int, models: dict[str, dict], steps: int = STEPS) -> None:
    """For each named model, the losses of the global batch in {name}.json and the weights in {name}.safetensors. "file" among its
    settings is DeepSpeed's configuration."""
    device = start_process_group(60)
    for name, settings in models.items():
        file = settings.get("file", f"cpu_zero2{'_ep2' if ep_size == 2 else ''}.json")
        run = make_run(ep_size=ep_size, **{key: value for key, value in settings.items() if key != "file"})
        engine = make_engine(run, file, device)
        losses = [step_engine(engine, keyed_batch(step), 1e-3)[0] for step in range(steps)]
        weights = full_parameters(engine)
        if is_main():
            (Path(folder) / f"{name}.json").write_text(json.dumps(losses))
            save_file({key: value.contiguous() for key, value in weights.items()}, Path(folder) / f"{name}.safetensors")
    leave()


def keyed_batch(step: int) -> Batch:
    """The global batch of a step, with its samples' random keys."""
    batch = make_batch(step)
    batch.key_B = sample_keys(0, step, 0, len(batch.targets["label"]))
    return batch
