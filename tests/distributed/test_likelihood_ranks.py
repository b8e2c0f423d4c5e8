"""Answers among candidates on two ranks equal one process without DeepSpeed: seven names, of which the second rank has three and
one that only fills up, all words, and pairs of the whole batch; with a router for each token, noise and dropout, also in
micro-batches.
"""

import json

import likelihood_worker
import pytest
import torch

from helpers.likelihood_run import ORDER, likelihood_config, likelihood_run
from helpers.ranks import run_ranks
from imp_ds.objectives.candidates import Names
from imp_ds.randomness import sample_keys, step_key

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, list[dict]]:
    out = tmp_path_factory.mktemp("likelihood") / "results.json"
    run_ranks(likelihood_worker.compare_all, str(out), ranks=2, folder=out.parent, limit_s=90)
    return json.loads(out.read_text())


@pytest.mark.parametrize("case", [" ".join(map(str, case)) for case in likelihood_worker.CASES])
def test_two_ranks_equal_one_process(results, case):
    for step, found in enumerate(results[case]):
        where = f"step {step}, task {ORDER[step % 3]}"
        assert found["loss"] == pytest.approx(found["reference_loss"], rel=1e-6, abs=1e-6), where
        assert found["norm"] == pytest.approx(found["reference_norm"], rel=1e-5), where
        assert found["change"] < 2e-6, where


def test_a_step_draws_one_of_several_names():
    """Or all ranks would agree without drawing alike."""
    config = likelihood_config(likelihood_run())
    names, index_n = Names(config.objectives["names"]["objectives"][0]["candidate_ids"]), torch.arange(7)
    drawn = [names.texts(index_n, step_key(sample_keys(0, step, 0, 1)))[0].flatten().tolist() for step in range(8)]
    assert len(set(map(tuple, drawn))) == 8  # of 2^5 * 4 * 6 choices
