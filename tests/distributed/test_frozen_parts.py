"""A Uni-MoE whose towers and language model are frozen, but for its routers, at ZeRO 0 to 3, with activation checkpointing, with
optimizer and parameters on the CPU, and with experts spread over two ranks: as in one process.

Gradients go through the frozen language model to connectors and routers; nothing frozen changes, has a moment, or is written into
a checkpoint.
"""

import json
from pathlib import Path

import frozen_parts_worker as worker
import pytest
import torch
from frozen_parts_worker import LAYOUTS, RATE, STEPS, TRAINED, Layout, batch_of, run_of
from safetensors.torch import load_file

from helpers.ranks import run_ranks
from imp_ds.families import family_of
from imp_ds.families.trainable import freeze_others

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    run_ranks(worker.main, str(folder), ranks=2, folder=folder, limit_s=180)
    return folder


@pytest.fixture(scope="module")
def reference():
    """(loss, gradient norm) of each step, the weights before and after, and the names of those that are trained: by one process
    and torch's AdamW."""
    made = run_of(Layout(0))
    family = family_of(made)
    config = family.config(made)
    model = family.build(config, seed=made.train.seed, ep_size=1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    freeze_others(model, TRAINED)
    groups = {True: [], False: []}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                groups[model.decays(module, name)].append(parameter)
    groups = [{"params": group, "weight_decay": 1e-2 * decays} for decays, group in groups.items()]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=made.optimizer.betas, eps=made.optimizer.eps)
    found, trained = [], {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for number in range(STEPS):
        loss = model.train()(batch_of(number, config)).loss
        optimizer.zero_grad()
        loss.backward()
        norm = torch.stack([p.grad.double().square().sum() for p in model.parameters() if p.requires_grad]).sum().sqrt()
        optimizer.step()
        found.append([loss.item(), norm.item()])
    return found, before, {name: parameter.detach() for name, parameter in model.named_parameters()}, trained


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_it_equals_one_process(folder, reference, layout):
    steps, before, after, trained = reference
    found = json.loads((folder / f"{layout}.json").read_text())
    torch.testing.assert_close(torch.tensor(found["steps"]), torch.tensor(steps), rtol=1e-4, atol=1e-6)
    own = load_file(folder / f"{layout}.safetensors")
    assert own.keys() == after.keys()
    for name, value in after.items():
        torch.testing.assert_close(own[name], value, rtol=0, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    # not a bit of what is frozen, and all of what is trained
    assert {name for name, value in before.items() if not torch.equal(own[name], value)} == trained


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_nothing_is_kept_of_what_is_frozen(folder, reference, layout):
    """A moment for each trained element, on each of two ranks at ZeRO 0, else on one, but for a partition's padding; and 12 bytes
    of it in a checkpoint. What is frozen lies beside all checkpoints, once."""
    _, before, _, trained = reference
    elements, found = sum(before[name].numel() for name in trained), json.loads((folder / f"{layout}.json").read_text())
    copies = 2 if layout.stage == 0 else 1
    assert copies * elements <= found["moments"] <= copies * elements + 256
    path = Path(found["checkpoint"])
    data = sum(file.stat().st_size for kind in ("model", "optimizer") for file in path.glob(f"{kind}-*"))
    assert 12 * elements <= data <= 12 * elements + 20_000 < 4 * sum(value.numel() for value in before.values())
    stored = [name for file in (path.parent / "frozen").iterdir() for name in load_file(file)]
    assert len(stored) >= len(before) - len(trained)
