"""Captions on two ranks equal one process without DeepSpeed: loss, gradients and steps, though the ranks have different numbers
of words and each encodes half of the vocabulary; and so does what is measured of captions."""

import json

import captioning_worker
import pytest

from helpers.caption_run import caption_batch
from helpers.ranks import run_ranks
from imp_ds.modalities.text.masking import IGNORED

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, list]:
    out = tmp_path_factory.mktemp("captions") / "results.json"
    run_ranks(captioning_worker.compare_all, str(out), ranks=2, folder=out.parent, limit_s=120)
    return json.loads(out.read_text())


@pytest.mark.parametrize("case", [f"{gate} {name}" for gate, name, *_ in captioning_worker.CASES])
def test_two_ranks_equal_one_process(results, case):
    for step, found in enumerate(results[case]):
        assert found["loss"] == pytest.approx(found["reference_loss"], abs=1e-5), f"step {step}"
        assert found["norm"] == pytest.approx(found["reference_norm"], rel=1e-4), f"step {step}"
        assert found["change"] < 1e-6, f"step {step}"


def test_two_ranks_measure_what_one_does(results):
    alone, together = results["evaluated"]
    assert together["generated"] == alone["generated"] and len(alone["generated"]) == len(captioning_worker.ROWS)
    numbers = [{name: value for name, value in found.items() if name != "generated"} for found in (alone, together)]
    assert numbers[1] == pytest.approx(numbers[0], rel=1e-5) and len(numbers[0]) == 5


def test_the_ranks_have_different_numbers_of_words():
    """Or a mean over each rank's own would do as well."""
    target_BT = caption_batch(0).targets["caption"] != IGNORED
    assert [half.sum().item() for half in target_BT.chunk(2)] == [2 + 3 + 4 + 5, 6 + 7 + 8 + 9]
