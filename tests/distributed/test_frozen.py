"""Runs that train a part of the model equal one process that does, on any layout: losses, gradients, and which tensors change.

Frozen experts, experts alone, and halves of experts beside norms; at ZeRO 0 to 3 on one rank and on two, experts spread and not.
"""

import exactness_worker
import pytest

from benchmarks.exact.cases import FROZEN, frozen
from benchmarks.exactness import parse
from helpers.ranks import run_layouts, run_ranks

pytestmark = pytest.mark.distributed

LAYOUTS = [(1, 1), (2, 1), (2, 2)]
STEPS = 4  # each task, and the first once more
# each layout and stage once, and frozen experts wherever they are spread and partitioned; benchmarks/exactness.py has more
CASES = [
    frozen(list(FROZEN)[(stage + i) % 3], *layout, stage, STEPS) for i, layout in enumerate(LAYOUTS) for stage in range(4)
] + [frozen("frozen experts", 2, 2, stage, STEPS) for stage in (2, 3)]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frozen")
    run_ranks(exactness_worker.references, str(folder), CASES, ranks=1, folder=folder / "alone", limit_s=120)
    run_layouts(exactness_worker.measure, CASES, folder=folder, limit_s=200)
    lines = [line for ranks in (1, 2) for line in (folder / f"results_{ranks}.jsonl").read_text().splitlines()]
    return {result.case: result for result in map(parse, lines)}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_part_of_the_model_is_trained_as_in_one_process(results, case):
    assert results[case].passed, results[case].shown()
    gradients = {"frozen experts": {"rest"}, "all but experts frozen": {"experts"}, "frozen beside experts": {"experts", "rest"}}
    assert results[case].found.keys() - {"loss", "norm", "weight"} == gradients[case.variant]
