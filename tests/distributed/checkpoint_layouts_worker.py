"""One rank of tests/distributed/test_checkpoint_layouts.py: a run that is handed from one layout to the next, and one that is
resumed, or taken back, on its own."""

import json
from pathlib import Path

import torch
import torch.distributed as dist

from helpers.ranks import leave
from helpers.small_run import full_parameters, largest_difference, make_batch, make_engine, make_run, share, step_engine
from imp_ds.parallel.groups import is_main
from imp_ds.train import checkpoint
from imp_ds.train.checkpoint import Writer
from imp_ds.train.engine import ds_config
from imp_ds.train.engine.engine import start_process_group

STEPS = 3  # of each part of a run: every task once
RATE = 1e-3
EMA = 0.3  # beyond the warm-up's (1 + n) / (10 + n) from the fourth step on


def _run(ep_size: int, **model):
    return make_run(ep_size=ep_size, clip=0.0, ema=EMA, **model)  # clipping at ZeRO 0 with experts is refused


def _train(engine, first: int) -> list[float]:
    return [step_engine(engine, make_batch(step), RATE)[0] for step in range(first, first + STEPS)]


def _average(engine) -> dict[str, torch.Tensor]:
    """The average of every parameter, as the forward uses it; afterwards the weights are as they were."""
    before = full_parameters(engine)
    with engine.average.in_place():
        found = full_parameters(engine)
    assert largest_difference(before, full_parameters(engine)) == 0
    return found


def _average_by_hand(engine) -> float:
    """Train the first three steps, one more is not taken: the largest difference of the engine's average from one computed of the
    weights before and after each step, with decays 1/10, 2/11 and 3/12."""
    expected = full_parameters(engine)
    for step, decay in enumerate((1 / 10, 2 / 11, 3 / 12)):
        step_engine(engine, make_batch(step), RATE)
        weights = full_parameters(engine)
        expected = {name: decay * value + (1 - decay) * weights[name] for name, value in expected.items()}
    engine.forward(share(make_batch(0)))
    engine.update(RATE, accept=lambda norm: False)
    return largest_difference(expected, _average(engine))


def _load(folder: Path, run, ds, device):
    """An engine as resuming makes it, from other weights than the checkpoint's: what is not loaded would be seen."""
    reader = checkpoint.Reader(checkpoint.newest(folder, warn=print))
    engine = make_engine(run, ds, device, seed=1, prepare_model=reader.load_weights)
    reader.load_optimizer(engine)
    return engine


def _leave(found, out: str) -> None:
    if is_main():
        Path(out).write_text(json.dumps(found))
    leave()


def hand_over(out: str, layouts: list[tuple[str, int]], model: dict) -> None:
    """Losses of a run that changes its layout (file, ep_size) after every part, and of one that stays on the first."""
    device, folder = start_process_group(60), Path(out).parent / "handed"
    losses = []
    for part, (file, ep_size) in enumerate(layouts):
        run, first = _run(ep_size, **model), part * STEPS
        engine = make_engine(run, file, device) if part == 0 else _load(folder, run, file, device)
        losses += _train(engine, first)
        state = {"step": first + STEPS, "adam_steps": first + STEPS}
        checkpoint.save(engine, folder, first + STEPS, state, keep=1)
    handed, average = full_parameters(engine), _average(engine)
    engine = make_engine(_run(layouts[0][1], **model), layouts[0][0], device)
    straight = [loss for part in range(len(layouts)) for loss in _train(engine, part * STEPS)]
    differences = dict(
        weights=largest_difference(handed, full_parameters(engine)), averages=largest_difference(average, _average(engine)),
        apart=largest_difference(average, handed),
    )  # fmt: skip
    _leave(dict(losses=losses, straight=straight, **differences), out)


def resume_and_go_back(out: str, layouts: list[tuple[str, int, bool]]) -> None:
    """For each layout (file, ep_size, bf16) the losses and the differences of weights between a run that went on while its
    checkpoint was written, one that was resumed from it, and the first one taken back to it in place."""
    device, found = start_process_group(60), {}
    for file, ep_size, bf16 in layouts:
        name = f"{file} ep{ep_size}{' bf16' if bf16 else ''}"
        run, ds, folder = _run(ep_size), ds_config.load(ds_config.FOLDER / file), Path(out).parent / name
        if bf16:
            ds |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
        engine = make_engine(run, ds, device)
        by_hand = _average_by_hand(engine)
        writer = Writer(engine, folder, keep=1)
        writer.save(STEPS, {"step": STEPS, "adam_steps": STEPS})
        straight, expected, average = _train(engine, STEPS), full_parameters(engine), _average(engine)
        writer.wait()
        _train(engine, 2 * STEPS)
        checkpoint.Reader(checkpoint.newest(folder)).restore(engine)
        back, taken, again = _train(engine, STEPS), full_parameters(engine), _average(engine)
        engine = _load(folder, run, ds, device)
        resumed, loaded = _train(engine, STEPS), full_parameters(engine)
        pairs = [(expected, loaded), (expected, taken), (average, _average(engine)), (average, again)]
        differences = torch.tensor([largest_difference(*pair) for pair in pairs])
        dist.all_reduce(differences, op=dist.ReduceOp.MAX)
        found[name] = dict(straight=straight, resumed=resumed, back=back, differences=differences.tolist(), by_hand=by_hand)
    _leave(found, out)
