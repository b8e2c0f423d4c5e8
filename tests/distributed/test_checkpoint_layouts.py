"""Runs go on under another number of expert ranks and another ZeRO stage as if nothing had happened, and on the same layout
bit for bit, also when they are taken back in place; and so does the average of their weights, which is that of the definition."""

import json
from pathlib import Path

import checkpoint_layouts_worker
import pytest

from helpers.ranks import run_ranks

pytestmark = pytest.mark.distributed

# four ranks; expert groups of four, two and one, and back
HANDED = [
    ("cpu_zero1.json", 4), ("cpu_zero3.json", 2), ("cpu_zero0.json", 1), ("cpu_zero2_offload.json", 2), ("cpu_zero3.json", 4),
    ("cpu_zero1.json", 1),
]  # fmt: skip
# two ranks; in bf16 the master weights are not those of the forward
SAME = [
    ("cpu_zero0.json", 2, False), ("cpu_zero1.json", 2, False), ("cpu_zero2_offload.json", 1, False),
    ("cpu_zero3.json", 2, False), ("cpu_zero2.json", 1, True), ("cpu_zero3.json", 2, True),
]  # fmt: skip


# two ranks; experts of linear layers, some of which a condition leaves idle
LINEARS = [("cpu_zero1.json", 2), ("cpu_zero3.json", 1), ("cpu_zero2_offload.json", 2)]
CONDITIONAL = dict(gate="attribute", conditional_linears=["qkv", "out", "up", "down"])


@pytest.mark.parametrize("layouts, ranks, model", [(HANDED, 4, {}), (LINEARS, 2, CONDITIONAL)], ids=["mixtures", "linears"])
def test_a_run_is_handed_from_layout_to_layout(tmp_path, layouts, ranks, model):
    out = tmp_path / "out.json"
    run_ranks(
        checkpoint_layouts_worker.hand_over, str(out), layouts, model, ranks=ranks, folder=tmp_path / "logs", limit_s=150
    )  # fmt: skip
    found = json.loads(out.read_text())
    assert len(found["losses"]) == 3 * len(layouts) and found["losses"] == pytest.approx(found["straight"], abs=1e-5)
    assert found["weights"] < 1e-5 and found["averages"] < 1e-5 < found["apart"]


@pytest.fixture(scope="module")
def same(tmp_path_factory) -> dict:
    out: Path = tmp_path_factory.mktemp("same") / "out.json"
    run_ranks(checkpoint_layouts_worker.resume_and_go_back, str(out), SAME, ranks=2, folder=out.parent / "logs", limit_s=150)
    return json.loads(out.read_text())


@pytest.mark.parametrize("file, ep_size, bf16", SAME)
def test_the_same_layout_goes_on_bit_for_bit(same, file, ep_size, bf16):
    found = same[f"{file} ep{ep_size}{' bf16' if bf16 else ''}"]
    assert len(set(found["straight"])) == 3
    assert found["resumed"] == found["straight"] and found["back"] == found["straight"]
    assert found["differences"] == [0, 0, 0, 0]  # of weights and of averages, resumed and taken back
    assert found["by_hand"] < (0.02 if bf16 else 1e-6)  # weights of the forward are rounded to 8 bits: 1/64 from 2 on
