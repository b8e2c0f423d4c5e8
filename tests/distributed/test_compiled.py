"""Compiled blocks under DeepSpeed: the losses and weights of plain ones, as many graphs as shapes, and none after the warm-up.

Graphs are traced and differentiated as for a GPU, but run by torch's own kernels ("aot_eager"): what a compiler makes of a graph
is tested in tests/train/engine/test_compilation.py.
"""

import json

import compiled_worker
import pytest

from helpers.ranks import Ranks, end_well

pytestmark = pytest.mark.distributed

# make_run has a dense block and one with experts. A rank alone sees four shapes: images of 8, texts of 8 and of 4, recordings of
# 4
SHAPES, KINDS = 4, 2
NOISY = {"router_noise": 1.0, "hidden_dropout": 0.1}
ALONE = {
    "bf16_zero1_top_2": {"ds": "cpu_zero1.json", "bf16": True, "model": {"router": "top_k"} | NOISY},
    # encoded without gradient first: each shape twice
    "zero2_micro_batches_checkpointed": {"ds": "cpu_zero2.json", "model": {}, "micro_batches": 2, "checkpointing": True},
    # the graphs before and after the experts
    "drop_free": {"ds": "cpu_zero1.json", "model": {"router": "top_k", "drop_tokens": False}},
}
GRAPHS = {"zero2_micro_batches_checkpointed": 2 * KINDS * SHAPES, "drop_free": 3 * SHAPES}
GATED = {"ep_size": 2, "expert_activation": "geglu"}
TOGETHER = {"ep2_in_parts": {"ds": "cpu_zero2_ep2.json", "model": GATED | NOISY, "parts": 2, "checkpointing": True}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """{case: what its ranks found}"""
    folder = tmp_path_factory.mktemp("compiled")
    end_well(
        (Ranks(compiled_worker.train, str(folder), cases, ranks=ranks, folder=folder / str(ranks))
         for ranks, cases in ((1, ALONE), (2, TOGETHER))),
        limit_s=240,
    )  # fmt: skip
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in ALONE | TOGETHER}


@pytest.mark.parametrize("case", ALONE | TOGETHER)
def test_compiled_blocks_train_as_plain_ones(trained, case):
    """The plain ones exchange tokens in one part."""
    found = trained[case]
    assert len(set(found["plain"])) == compiled_worker.STEPS
    assert found["compiled"] == pytest.approx(found["plain"], abs=1e-5)
    assert found["weights"] < 1e-5


@pytest.mark.parametrize("case", ALONE | TOGETHER)
def test_all_graphs_are_made_before_the_first_step(trained, case):
    found = trained[case]
    assert found["warm"] == found["graphs"] == GRAPHS.get(case, KINDS * SHAPES)


@pytest.mark.parametrize("case", ALONE | TOGETHER)
def test_the_warm_up_changes_no_weight(trained, case):
    """Equal weights after the steps, above, say the same of the optimizer's state."""
    assert trained[case]["changed"] == 0.0
