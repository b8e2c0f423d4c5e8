"""One rank of tests/train/checkpoint/test_checkpoint.py: save after five steps and go on; or load, under another layout."""

import json
from pathlib import Path

from safetensors.torch import save_file

from helpers.ranks import leave
from helpers.small_run import full_parameters, make_batch, make_config, make_engine, make_run, step_engine
from imp_ds.parallel.groups import is_main, world_size
from imp_ds.train import checkpoint
from imp_ds.train.checkpoint import files
from imp_ds.train.engine.engine import start_process_group

SAVED, STEPS = 5, 11
RATE = 1e-3


def _go_on(engine, folder: str, name: str) -> None:
    losses = [step_engine(engine, make_batch(step), RATE)[0] for step in range(SAVED, STEPS)]
    weights = full_parameters(engine)
    if is_main():
        (Path(folder) / f"{name}.json").write_text(json.dumps(losses))
        save_file({key: value.contiguous() for key, value in weights.items()}, Path(folder) / f"{name}.safetensors")


def _leave() -> None:
    leave()


def _run(ep_size: int, stage: int):
    return make_run(ep_size=ep_size, clip=0.0 if stage == 0 else 0.1, group_examples=2)


def save_and_load(folder: str, layouts: list[tuple[str, int]]) -> None:
    """Save at ZeRO 2 with ep_size 2, and earlier once more; then each layout (file, ep_size) goes on from it.

    The losses and weights of the run that was not interrupted are `straight`, or `straight_unclipped` for ZeRO 0, which may
    not clip.
    """
    device = start_process_group(60)
    for clip, suffix in ((0.1, ""), (0.0, "_unclipped")):
        engine = make_engine(make_run(ep_size=2, clip=clip, group_examples=2), "cpu_zero2_ep2.json", device)
        for step in range(SAVED):
            step_engine(engine, make_batch(step), RATE)
            if not suffix and step == 2:
                checkpoint.save(engine, Path(folder) / "run", 3, {"step": 3, "adam_steps": 3}, keep=2)
        checkpoint.save(engine, Path(folder) / f"run{suffix}", SAVED, {"step": SAVED, "adam_steps": SAVED}, keep=2)
        _go_on(engine, folder, f"straight{suffix}")
    for file, ep_size in layouts:
        load(folder, file, ep_size, device)
    _leave()


def load(folder: str, file: str, ep_size: int, device) -> None:
    stage = int(file.removeprefix("cpu_zero")[0])
    path = checkpoint.newest(Path(folder) / ("run_unclipped" if stage == 0 else "run"))
    reader = checkpoint.Reader(path)
    # other weights before the checkpoint is read: what is not loaded would be seen
    engine = make_engine(_run(ep_size, stage), file, device, seed=1, prepare_model=reader.load_weights)
    reader.load_optimizer(engine)
    _go_on(engine, folder, f"{Path(file).stem}_ep{ep_size}_ranks{world_size()}")


def load_alone(folder: str, files: list[str]) -> None:
    """The same on one rank."""
    device = start_process_group(60)
    for file in files:
        load(folder, file, 1, device)
    _leave()


def save_without_room(folder: str) -> None:
    """Rank 1 cannot write its part: both ranks must raise, and the earlier checkpoint must stay the newest."""
    from imp_ds.errors import UserError

    device = start_process_group(60)
    engine = make_engine(_run(2, 2), "cpu_zero2_ep2.json", device)
    checkpoint.save(engine, Path(folder), 1, {"step": 1, "adam_steps": 0}, keep=2)
    write = files.write_safetensors

    def full_disk(path, *rest):
        if not is_main():
            path.write_bytes(bytes(10))
            raise OSError(28, "No space left on device")
        return write(path, *rest)

    files.write_safetensors = full_disk
    try:
        checkpoint.save(engine, Path(folder), 2, {"step": 2, "adam_steps": 0}, keep=2)
        print("saved", flush=True)
    except UserError as error:
        print(f"refused: {error}", flush=True)
    _leave()


def make_model_config(**settings):
    """The ImpConfig of the saved run, with some settings changed."""
    return make_config(make_run(ep_size=1, **{"group_examples": 2, **settings}))
