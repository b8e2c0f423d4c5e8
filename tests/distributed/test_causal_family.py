"""The engine knows no model: a causal MoE language model, whose loss is a mean over tokens, trains exactly on any layout.

The reference is one process: plain PyTorch, the mean over all tokens of the global batch, and torch's AdamW.
"""

import json

import causal_worker
import pytest
import torch
from causal_worker import STEPS, Layout
from safetensors.torch import load_file

from helpers.causal_model import build_causal, text_batch
from helpers.ranks import run_layouts
from helpers.small_run import make_run

pytestmark = pytest.mark.distributed

# every ranks x ep_size x ZeRO stage; capacity and drop-free, one micro-batch and two take turns
PLACES = [(ranks, ep_size) for ranks in (1, 2, 4) for ep_size in (1, 2, 4) if ep_size <= ranks]
LAYOUTS = [
    Layout(ranks, ep_size, stage, bool((stage + place) % 2), 1 + (stage // 2 + place) % 2)
    for place, (ranks, ep_size) in enumerate(PLACES)
    for stage in range(4)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("causal")
    run_layouts(causal_worker.train, LAYOUTS, folder=folder, limit_s=200)
    return folder


@pytest.fixture(scope="module")
def references():
    return {drop_tokens: reference(drop_tokens) for drop_tokens in (False, True)}


def reference(drop_tokens: bool) -> tuple[list[list[float]], dict[str, torch.Tensor]]:
    """(loss, gradient norm) of each step, and the weights after them."""
    model = build_causal(0, 1, drop_tokens)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in trained if p.dim() > 1]
    rest = [p for name, p in trained if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
    settings = make_run().optimizer
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=settings.betas, eps=settings.eps)
    found = []
    for step in range(STEPS):
        loss = model(text_batch(step)).loss
        optimizer.zero_grad()
        loss.backward()
        norm = torch.stack([p.grad.double().square().sum() for _, p in trained]).sum().sqrt()
        optimizer.step()
        found.append([loss.item(), norm.item()])
    return found, {name: p.detach() for name, p in model.named_parameters()}


def test_the_layouts_are_all():
    assert {(own.ranks, own.ep_size, own.stage) for own in LAYOUTS} == {(r, e, s) for r, e in PLACES for s in range(4)}
    assert {(own.drop_tokens, own.micro_batches) for own in LAYOUTS} == {(a, b) for a in (False, True) for b in (1, 2)}


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_it_equals_one_process(folder, references, layout):
    steps, weights = references[layout.drop_tokens]
    found = json.loads((folder / f"{layout}.json").read_text())
    torch.testing.assert_close(torch.tensor(found), torch.tensor(steps), rtol=1e-4, atol=1e-6)
    own = load_file(folder / f"{layout}.safetensors")
    assert own.keys() == weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(own[name], value, rtol=0, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    assert torch.equal(own["embedding.weight"], weights["embedding.weight"])


def test_a_mean_of_means_would_be_seen():
    """Two ranks of four texts: the last half has fewer tokens that are asked for, so that the mean of both means is another."""
    model, batch = build_causal(0, 1, False), text_batch(0)
    halves = [batch.map(lambda x, i=i: x.chunk(2)[i]) for i in range(2)]
    mean_of_means = torch.stack([model(half).loss for half in halves]).mean()
    assert abs(mean_of_means - model(batch).loss) > 0.01
