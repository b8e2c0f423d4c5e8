"""ep_size 2 on two ranks equals ep_size 1 on one rank: the same global batch and routing groups, alternating tasks.

What is asked for: "losses of 20 steps and the weights after them to 1e-4 in float32".
"""

import json

import expert_parallel_worker
import pytest
from safetensors.torch import load_file

from helpers.ranks import run_each_size
from helpers.small_run import largest_difference, make_config, make_run
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.models.initialization import initialize_seeded

pytestmark = pytest.mark.distributed

# a rank of two has 4 or 2 rows of a batch, so groups of two examples are the same on one rank and on two
MODELS = {
    "groups_of_one": {"group_examples": 1},
    "groups_of_two_gated": {"group_examples": 2, "expert_activation": "geglu"},
    "every_layer_loose": {"group_examples": 2, "moe_layers": "every:1", "capacity_factor": 2.0},
    "top_1": {"router": "top_k", "experts_per_token": 1, "capacity_factor": 1.25},
    "top_2": {"router": "top_k", "group_examples": 2, "router_noise": 1.0},
    "top_2_drop_free": {"router": "top_k", "drop_tokens": False, "moe_layers": "every:1", "expert_activation": "geglu"},
}
# the control, on one rank only: other groups than those of groups_of_one
UNLIKE = {"groups_of_two": {"group_examples": 2}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """{ranks: {model: (losses, weights)}}"""
    models = {1: MODELS | UNLIKE, 2: MODELS}
    arguments = lambda ranks: (ranks, models[ranks])  # noqa: E731
    folders = run_each_size(expert_parallel_worker.train, arguments, tmp_path_factory.mktemp, limit_s=120)
    return {
        ranks: {
            name: (json.loads((folder / f"{name}.json").read_text()), load_file(folder / f"{name}.safetensors"))
            for name in models[ranks]
        }
        for ranks, folder in folders.items()
    }


@pytest.mark.parametrize("model", MODELS)
def test_losses_and_weights_are_those_of_one_rank(trained, model):
    (alone, weights_alone), (together, weights_together) = trained[1][model], trained[2][model]
    assert len(alone) == 20
    assert together == pytest.approx(alone, abs=1e-4)
    assert largest_difference(weights_alone, weights_together) < 1e-4


@pytest.mark.parametrize("model", MODELS)
def test_every_expert_of_both_ranks_was_trained(trained, model):
    """Equal results would say little if nothing moved: after 20 steps at a rate of 1e-3 each expert is well off its start."""
    config = make_config(make_run(**MODELS[model]))
    start = ImpForPreTraining(config)
    initialize_seeded(start, 0, config.initializer_range)
    experts = {name: p for name, p in start.named_parameters() if ".experts." in name and p.ndim == 3}
    assert experts
    for name, before_EDF in experts.items():
        moved_E = (trained[2][model][1][name] - before_EDF.detach()).abs().amax((1, 2))
        assert len(moved_E) == 4 and moved_E.min() > 3e-3


def test_the_check_would_see_other_routing_groups(trained):
    """Groups of one example on two ranks against groups of two on one: a real difference, far above the tolerance."""
    (alone, weights_alone), (together, weights_together) = trained[1]["groups_of_two"], trained[2]["groups_of_one"]
    assert max(abs(a - b) for a, b in zip(alone, together)) > 1e-3
    assert largest_difference(weights_alone, weights_together) > 1e-3
