"""A few combinations of the exactness matrix (benchmarks/exactness.py, docs/exactness.md), and what it refuses.

What is asked for: "losses over 20 steps and weights after them equal to one process (float32: 1e-4), gradients of experts and of
the rest against a float64 naive reference, gradient norm and clipping right under expert parallelism".
"""

import exactness_worker
import pytest

from benchmarks.exact.bounds import FLOAT32
from benchmarks.exact.cases import ROUTERS, Case, matrix, refusal, variants
from benchmarks.exactness import parse
from helpers.ranks import run_layouts, run_ranks

pytestmark = pytest.mark.distributed

EXPERT_CHOICE, TOP_1, TOP_2, DROP_FREE = ROUTERS
TWO = [
    Case(EXPERT_CHOICE, 2, 2, 1),
    Case(TOP_1, 2, 2, 3, offload=True),
    Case(TOP_2, 2, 2, 0, clip=0.0),
    Case(DROP_FREE, 2, 2, 2, offload=True),
    Case(DROP_FREE, 2, 1, 3, bf16=True),
]
FOUR = [Case(DROP_FREE, 4, 4, 1), Case(TOP_2, 4, 4, 2, bf16=True)]
BROKEN = Case(DROP_FREE, 2, 2, 2, offload=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exactness")
    run_ranks(exactness_worker.references, str(folder), TWO + FOUR, ranks=1, folder=folder / "one", limit_s=120)
    return folder


@pytest.fixture(scope="module")
def results(folder):
    run_layouts(exactness_worker.measure, TWO + FOUR, folder=folder, limit_s=200)
    lines = [line for ranks in (2, 4) for line in (folder / f"results_{ranks}.jsonl").read_text().splitlines()]
    return {result.case: result for result in map(parse, lines)}


@pytest.mark.parametrize("case", TWO + FOUR, ids=str)
def test_it_equals_one_process(results, case):
    result = results[case]
    assert result.passed, result.shown()
    if not case.bf16:
        assert result.found.keys() >= {"loss", "norm", "weight", "experts", "rest"}
        assert result.found.get("choices", 0.0) == 0.0


def test_the_check_would_see_a_stale_gradient(folder, tmp_path):
    """Without the engine's remedy DeepSpeed applies a parameter's last gradient again in the steps of the other tasks."""
    for file in folder.glob("*.safetensors"):
        (tmp_path / file.name).symlink_to(file)
    run_ranks(exactness_worker.measure, str(tmp_path), [BROKEN], False, ranks=2, folder=tmp_path / "two", limit_s=60)
    result = parse((tmp_path / "results_2.jsonl").read_text())
    assert not result.passed
    assert min(result.found[name] for name in ("weight", "rest", "norm")) > 10 * FLOAT32


def test_what_is_refused_is_zero_0_with_clipping_or_bfloat16_and_groups_that_depend_on_micro_batches():
    """Four ranks: 4 routers x 3 ep_sizes x 2 precisions x 4 stages x 2 offloads, and ZeRO 0 once more without clipping."""
    cases = matrix(4)
    assert len(set(cases)) == len(cases) == 4 * 3 * 2 * 4 * 2 + 4 * 3 * 2 * 2
    refused = {case: refusal(case) for case in cases}
    for case, reason in refused.items():
        if case.stage == 0 and case.clip:
            assert "clips by a wrong gradient norm" in reason
        elif case.stage == 0 and case.bf16:
            assert "bfloat16 at ZeRO 0" in reason
        elif case.stage:
            assert reason is None, case
    # 16 samples on four ranks in four micro-batches are one at a time, and a routing group is of two
    assert {case.variant for case in variants(4) if refusal(case)} == {"micro-batches 4"}
