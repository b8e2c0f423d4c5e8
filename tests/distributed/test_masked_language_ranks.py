"""Hidden words found on two ranks equal one process without DeepSpeed, whole and in micro-batches, though the ranks have
different numbers of hidden words, and though at ZeRO 3 the head needs the words' vectors, which belong to another module."""

import json

import masked_language_worker
import pytest

from helpers.ranks import run_ranks
from helpers.words_run import words_batch
from imp_ds.modalities.text.masking import IGNORED

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, list[dict]]:
    out = tmp_path_factory.mktemp("words") / "results.json"
    run_ranks(masked_language_worker.compare_all, str(out), ranks=2, folder=out.parent, limit_s=90)
    return json.loads(out.read_text())


@pytest.mark.parametrize("case", [f"{name} {micro_batches}" for name, micro_batches, _ in masked_language_worker.CASES])
def test_two_ranks_equal_one_process(results, case):
    for step, found in enumerate(results[case]):
        assert found["loss"] == pytest.approx(found["reference_loss"], abs=1e-6), f"step {step}"
        assert found["norm"] == pytest.approx(found["reference_norm"], rel=1e-5), f"step {step}"
        assert found["change"] < 1e-6, f"step {step}"


def test_the_ranks_have_different_numbers_of_hidden_words():
    """Or a mean over each rank's own would do as well."""
    hidden_BL = words_batch(0).targets["token_ids"] != IGNORED
    assert [half.sum().item() for half in hidden_BL.chunk(2)] == [0 + 1 + 2 + 3, 4 + 5 + 6 + 7]
