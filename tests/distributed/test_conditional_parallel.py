"""Every gate and selection on two expert-parallel ranks equals one rank: losses of ten steps, and the weights after them.

The models take the ZeRO stages in turn; all draw noise, and three tasks alternate. Under top-1 a condition has one of four
experts, so in every step a rank has experts without weight, often none with any.
"""

import json

import expert_parallel_worker
import pytest
import torch
from safetensors.torch import load_file

from helpers.ranks import run_each_size
from helpers.small_run import largest_difference, make_config, make_run
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.models.initialization import initialize_seeded

pytestmark = pytest.mark.distributed

STEPS = 10
ALL = ["qkv", "out", "up", "down"]
CAPACITY, DROP_FREE = dict(router="top_k", group_examples=2), dict(router="top_k", drop_tokens=False)
GATES = {
    "token, linears, expert choice": dict(conditional_linears=["up", "down"], group_examples=2),
    "token, linears, top-2 with capacity": dict(conditional_linears=["up", "down"], share_decisions=False, **CAPACITY),
    "token, linears, top-2 drop-free": dict(conditional_linears=ALL, **DROP_FREE),
    "context, expert choice": dict(gate="context", group_examples=2),
    "context, top-2 with capacity": dict(gate="context", **CAPACITY),
    "context, linears, top-1 drop-free": dict(
        gate="context", conditional_linears=ALL, share_decisions=False, experts_per_token=1, **DROP_FREE
    ),
    "modality, top-1": dict(gate="modality", conditional_linears=ALL, experts_per_token=1),
    "modality, top-2": dict(gate="modality", experts_per_token=2),
    "task, top-1": dict(gate="task", experts_per_token=1),
    "task, top-2": dict(gate="task", conditional_linears=ALL, share_decisions=False),
    "attribute, top-1": dict(gate="attribute", conditional_linears=ALL, experts_per_token=1),
    "attribute, top-2": dict(gate="attribute", conditional_linears=ALL),
}
FILES = [f"cpu_zero{stage}.json" for stage in (1, 2, 3, 2)]
MODELS = {
    name: settings | dict(router_noise=1.0, moe_layers="all", num_hidden_layers=1, file=FILES[place % 4])
    for place, (name, settings) in enumerate(GATES.items())
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """{ranks: {model: (losses, weights)}}"""
    arguments = lambda ranks: (ranks, MODELS, STEPS)  # noqa: E731
    folders = run_each_size(expert_parallel_worker.train, arguments, tmp_path_factory.mktemp, limit_s=150)
    return {
        ranks: {
            name: (json.loads((folder / f"{name}.json").read_text()), load_file(folder / f"{name}.safetensors"))
            for name in MODELS
        }
        for ranks, folder in folders.items()
    }


def fresh_experts(model: str) -> dict[str, torch.Tensor]:
    settings = {name: value for name, value in MODELS[model].items() if name != "file"}
    config = make_config(make_run(**settings))
    start = ImpForPreTraining(config)
    initialize_seeded(start, 0, config.initializer_range)
    return {name: p.detach() for name, p in start.named_parameters() if ".experts." in name}


@pytest.mark.parametrize("model", MODELS)
def test_losses_and_weights_are_those_of_one_rank(trained, model):
    (alone, weights_alone), (together, weights_together) = trained[1][model], trained[2][model]
    assert len(alone) == STEPS
    assert together == pytest.approx(alone, abs=1e-4)
    assert largest_difference(weights_alone, weights_together) < 1e-4


@pytest.mark.parametrize("model", MODELS)
def test_experts_of_both_ranks_were_trained(trained, model):
    """Equal results would say little if nothing moved: an expert that is chosen moves by 1e-3 a step, weight decay by 1e-5."""
    for name, before_EIO in fresh_experts(model).items():
        moved_E = (trained[2][model][1][name] - before_EIO).abs().amax((1, 2))
        assert len(moved_E) == 4 and moved_E[:2].max() > 1e-3 and moved_E[2:].max() > 1e-3
