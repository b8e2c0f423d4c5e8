"""A rank whose experts get no token, tasks of different shapes one after another, a step of text alone, a text that is padding
alone, one sample on each rank: all end, and all equal one process.
"""

import json

import pytest
import uneven_worker
from safetensors.torch import load_file

from helpers.ranks import run_each_size
from helpers.small_run import largest_difference, make_config
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.models.initialization import initialize_seeded

pytestmark = pytest.mark.distributed

# without the loss that pulls large logits down, which would be all of the gradient when they are forced
TOP_1 = {"router": "top_k", "experts_per_token": 1, "router_z_loss": 0.0}
CASES = {
    "expert_choice": {},
    "top_2_drop_free": {"router": "top_k", "drop_tokens": False},
    "forced_drop_free": {**TOP_1, "drop_tokens": False, "forced": True},
    "forced_with_capacity": {**TOP_1, "forced": True},
}
FORCED = ["forced_drop_free", "forced_with_capacity"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """{ranks: {case: (what each rank wrote, weights)}}"""
    folders = run_each_size(uneven_worker.train, lambda ranks: (ranks, CASES), tmp_path_factory.mktemp, limit_s=120)
    found = {}
    for ranks, folder in folders.items():
        found[ranks] = {}
        for name in CASES:
            written = [json.loads((folder / f"{name}_{rank}.json").read_text()) for rank in range(ranks)]
            found[ranks][name] = (written, load_file(folder / f"{name}.safetensors"))
    return found


@pytest.mark.parametrize("case", CASES)
def test_losses_and_weights_are_those_of_one_rank(trained, case):
    ((alone,), weights_alone), (together, weights_together) = trained[1][case], trained[2][case]
    assert len(alone["losses"]) == uneven_worker.STEPS
    for rank in together:
        assert rank["losses"] == pytest.approx(alone["losses"], abs=1e-4)
    assert largest_difference(weights_alone, weights_together) < 1e-4


@pytest.mark.parametrize("case", FORCED)
def test_the_second_ranks_experts_had_no_token(trained, case):
    """Experts 2 and 3 are those of rank 1. They only decay, by 1e-2 * 1e-3 of themselves in each of 8 steps."""
    start = ImpForPreTraining(make_config(uneven_worker.uneven_run(1)))
    initialize_seeded(start, 0, start.config.initializer_range)
    experts = {name: p.detach() for name, p in start.named_parameters() if ".experts." in name}
    assert experts
    for written, weights in (trained[ranks][case] for ranks in (1, 2)):
        for found in written:
            assert min(found["rows"][:2]) > 0 and found["rows"][2:] == [0, 0]
        for name, before in experts.items():
            moved_E = (weights[name] - before).flatten(1).abs().amax(1)
            assert moved_E[:2].min() > 1e-3
            assert (weights[name][2:] - before[2:] * (1 - 1e-5) ** 8).abs().max() < 1e-6


def test_each_rank_was_given_its_half(trained):
    """Drop-free, a row for each of two choices of a valid token, on one MoE layer. Videos are 64 tokens, texts 7, recordings 8,
    images
    16. Of two rounds: 4 * (64 + 7) + 8 * 7 + 2 * (8 + 7) + 2 * 16 tokens, less 4 * 7 of the texts that are padding alone."""
    tokens = 2 * (4 * 71 + 8 * 7 + 2 * 15 + 2 * 16) - 4 * 7
    (alone,), _ = trained[1]["top_2_drop_free"]
    together, _ = trained[2]["top_2_drop_free"]
    assert sum(alone["rows"]) == 2 * tokens
    # the texts of padding alone are all with the second rank
    assert [sum(found["rows"]) for found in together] == [tokens + 4 * 7, tokens - 4 * 7]
