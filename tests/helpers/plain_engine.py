"""An engine as checkpoints see one, without DeepSpeed: a few parameters and AdamW's moments, as ZeRO 0 keeps them."""

from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from imp_ds.train import checkpoint
from imp_ds.train.engine.master_state import MOMENTS

# of a weight and its moments at step s: s, s + 0.25, s + 0.5
OFFSETS = {"": 0.0, "exp_avg/": 0.25, "exp_avg_sq/": 0.5}


def make_engine(elements: int = 1000, device: str = "cpu"):
    """Parameters "wide" [elements / 10, 10], "odd" [7] and "one" [], all zero."""
    model = nn.Module()
    for name, shape in {"wide": (elements // 10, 10), "odd": (7,), "one": ()}.items():
        model.register_parameter(name, nn.Parameter(torch.zeros(shape, device=device)))
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        optimizer.state[parameter] = {"step": torch.tensor(0.0), **{key: torch.zeros_like(parameter) for key in MOMENTS}}
    inner = SimpleNamespace(basic_optimizer=optimizer)
    return SimpleNamespace(model=model, stage=0, ep_size=1, device=torch.device(device), deepspeed=inner, average=None)


def fill(engine, step: int) -> None:
    """One step of training: every element tells the step."""
    with torch.no_grad():
        for parameter in engine.model.parameters():
            parameter.fill_(step)
            for key in MOMENTS:
                engine.deepspeed.basic_optimizer.state[parameter][key].fill_(step + OFFSETS[f"{key}/"])


def check_complete(folder: Path) -> int:
    """The step of a checkpoint all of whose elements tell that step; AssertionError otherwise."""
    checkpoint.verify(folder)
    reader = checkpoint.Reader(folder)
    step = reader.state["step"]
    assert folder.name.removesuffix(".replaced") == checkpoint.folder_name(step)
    for name, parameter in make_engine(10 * reader.index["wide"]["shape"][0]).model.named_parameters():
        for prefix, offset in OFFSETS.items():
            assert torch.equal(reader.read(prefix + name, 0, parameter.numel()), torch.full((parameter.numel(),), step + offset))
    return step
