"""A rank with images and audio beside one with text alone: no rank waits for the other, and the numbers are those of one process.

The reference is plain PyTorch on the global batch: the mean over all supervised tokens, and torch's AdamW.
"""

import json

import pytest
import torch
import uni_moe_mixed_worker as worker
from safetensors.torch import load_file

from helpers.ranks import Ranks, end_well
from helpers.small_run import make_run

pytestmark = pytest.mark.distributed
RATE = 1e-2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    end_well([Ranks(worker.train, str(folder), RATE, ranks=2, folder=folder / "logs")], limit_s=120)
    return folder


@pytest.fixture(scope="module")
def reference():
    """(loss, gradient norm) of each step, and the weights after them."""
    model = worker.build(1)
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = {
        id(p) for module in model.modules() for name, p in module.named_parameters(recurse=False) if model.decays(module, name)
    }
    groups = [
        {"params": [p for p in trained if (id(p) in decayed) == decays], "weight_decay": 0.01 if decays else 0.0}
        for decays in (True, False)
    ]
    settings = make_run().optimizer
    optimizer, found = torch.optim.AdamW(groups, lr=RATE, betas=settings.betas, eps=settings.eps), []
    for step in range(worker.STEPS):
        loss = model(worker.batch(step, slice(None))).loss
        optimizer.zero_grad()
        loss.backward()
        norm = torch.stack([p.grad.double().square().sum() for p in trained if p.grad is not None]).sum().sqrt()
        optimizer.step()
        found.append([loss.item(), norm.item()])
    return found, {name: p.detach() for name, p in model.named_parameters()}


def test_the_ranks_differ_in_what_they_have():
    first, second = (worker.batch(0, rows).inputs["messages"] for rows in (slice(0, 2), slice(2, 4)))
    assert {"pixel_values", "input_features"} <= first.keys() and not {"pixel_values", "input_features"} & second.keys()


@pytest.mark.parametrize("stage, ep_size", worker.LAYOUTS)
def test_it_equals_one_process(folder, reference, stage, ep_size):
    steps, weights = reference
    found = json.loads((folder / f"zero{stage}_ep{ep_size}.json").read_text())
    torch.testing.assert_close(torch.tensor(found), torch.tensor(steps), rtol=1e-4, atol=1e-6)
    own = load_file(folder / f"zero{stage}_ep{ep_size}.safetensors")
    assert own.keys() == weights.keys()
    for name, value in weights.items():
        if name.endswith(".key.bias"):  # it changes no attention: its gradient is rounding, which AdamW makes steps of
            continue
        torch.testing.assert_close(own[name], value, rtol=0, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
