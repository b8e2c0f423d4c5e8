"""A step that is discarded leaves weights, moments and step counts bit for bit as they were, at every ZeRO stage, and the run
goes on as one that never saw the batch.

What is asked for: "the step is skipped on all ranks".
"""

import json
from pathlib import Path

import pytest
import skipped_worker

from helpers.ranks import Ended, run_ranks

pytestmark = pytest.mark.distributed


def settings(stage: int, offload: bool = False, bf16: bool = False, threshold: int = 1000) -> dict:
    """At stage 3 tensors of `threshold` and more elements are partitioned: by default matrices, but no vectors."""
    zero = {"stage": stage, **({"stage3_param_persistence_threshold": threshold} if stage == 3 else {})}
    ds = {"optimizer": {"type": "AdamW", "params": {"torch_adam": True}}, "zero_optimization": zero}
    if offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
        ds["zero_force_ds_cpu_optimizer"] = False
    return ds | ({"bf16": {"enabled": True}} if bf16 else {})


CASES = {f"zero{stage}_ep{ep}": {"ds": settings(stage), "ep_size": ep} for stage in range(4) for ep in (1, 2)}
CASES["zero3_ep2"]["ds"] = settings(3, threshold=0)  # each tensor is gathered and left by itself, which takes its time
# offload with the harder layout alone: without experts spread over ranks it differs from the above by where the moments lie
CASES |= {f"zero{stage}_offload_ep2": {"ds": settings(stage, offload=True), "ep_size": 2} for stage in (1, 2, 3)}
CASES |= {f"zero{stage}_bf16_ep2": {"ds": settings(stage, bf16=True), "ep_size": 2} for stage in (1, 2, 3)}


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> tuple[Path, Ended]:
    folder = tmp_path_factory.mktemp("skipped")
    return folder, run_ranks(skipped_worker.run_all, str(folder), CASES, ranks=2, folder=folder, limit_s=240)


@pytest.fixture(scope="module")
def found(ended) -> dict[str, list[dict]]:
    folder, _ = ended
    return {name: [json.loads((folder / f"{name}_{rank}.json").read_text()) for rank in range(2)] for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_changed_by_a_discarded_step(found, name):
    for rank in found[name]:
        assert rank["moved"]  # what is compared below does change in a step
        assert rank["refuse"] and rank["skip"] and rank["skip_accumulated"] and rank["spoil_rank_1"]


@pytest.mark.parametrize("name", CASES)
def test_all_ranks_discard_it(found, name):
    for rank in found[name]:
        # asked once, about the finite norm that is returned; not taken
        assert rank["returned"]["refuse"] == [1, True, False]
        # the loss is finite on both ranks, the norm on none
        assert rank["returned"]["spoil_rank_1"] == [True, False, False]


@pytest.mark.parametrize("name", CASES)
def test_the_run_goes_on_as_if_it_had_never_seen_the_batches(found, name):
    for rank in found[name]:
        discarded, unspoilt = rank["losses"]
        assert len(discarded) == 3 and discarded == unspoilt and rank["same"]


def test_deepspeed_says_nothing_of_overflow(ended):
    """Of each step that is discarded it would say "OVERFLOW ... non-finite": of one with a finite norm, a spike, that is false,
    and of the others the trainer says what is true."""
    output = "".join(ended[1].outputs)
    assert "overflow" not in output.lower() and "non-finite" not in output, output[-3000:]
