"""The time of a step: traffic of collectives, roofline and choice of expert groups against sums worked out by hand."""

import pytest

from imp_ds.costs import Kernel
from imp_ds.errors import UserError
from imp_ds.families.imp.costs.cost import ImpCost
from imp_ds.planning.choice import Choice, advice, best
from imp_ds.planning.hardware_profile import EngineRate, KernelRate, Link, h200
from imp_ds.planning.plan import plan
from imp_ds.planning.time import (
    Network,
    Weights,
    engine_seconds,
    exchange_seconds,
    gradient_seconds,
    task_weights,
    weight_seconds,
)
from imp_ds.recipes import get_recipe

NETWORK = Network(gpus=4, gpu_link=100.0, node_link=10.0, latency_s=0.0)


def test_roofline_takes_the_longer_of_computing_and_moving():
    rate = KernelRate(overhead_s=0.5, bytes_per_s=10.0, flops_per_s={100: 50.0, 400: 100.0})
    assert rate.seconds(Kernel("product", 100, 500.0, 50.0, 2)) == 2 * 0.5 + 500 / 50  # moving would take 5
    assert rate.seconds(Kernel("product", 100, 500.0, 200.0, 2)) == 2 * 0.5 + 200 / 10
    assert rate.flops_at(200) == pytest.approx(75)  # half way from 100 to 400 in the logarithm
    assert (rate.flops_at(10), rate.flops_at(1000)) == (50, 100)
    assert KernelRate(overhead_s=0.5, bytes_per_s=10.0).seconds(Kernel("copy", 0, 0.0, 50.0, 3)) == 1.5 + 5


def test_collectives_inside_a_node():
    # 4 ranks: an all-reduce of 800 bytes moves 2 * 3/4 of them through each rank, a gather 3/4
    assert NETWORK.seconds("all_reduce", 800, 1, 4) == pytest.approx(1200 / 100)
    assert NETWORK.seconds("all_gather", 800, 1, 4) == NETWORK.seconds("reduce_scatter", 800, 1, 4) == pytest.approx(6)
    assert NETWORK.seconds("all_to_all", 800, 1, 4) == pytest.approx(6)
    assert NETWORK.seconds("all_reduce", 800, 1, 1) == 0
    measured = Network(gpus=4, measured={"all_reduce": Link(latency_s=0.25, bytes_per_s=10.0)})
    assert measured.seconds("all_reduce", 800, 3, 4) == pytest.approx(3 * 0.25 * 2 + 120)  # log2(4) = 2 starts each
    # of the 400 bytes of a call the first 100 at 50 a second, the others at 10
    link = Link(latency_s=0.25, bytes_per_s=10.0, short_bytes=100.0, short_bytes_per_s=50.0)
    assert Network(gpus=4, measured={"all_reduce": link}).seconds("all_reduce", 800, 3, 4) == pytest.approx(3 * (0.5 + 2 + 30))
    assert link.moving_s(40) == 40 / 50


def test_collectives_across_nodes():
    # 8 ranks on 2 nodes: the ring enters a node once for each of its 4 ranks, 40 bytes a second
    assert NETWORK.seconds("all_reduce", 800, 1, 8) == pytest.approx(2 * 7 / 8 * 800 / 40)
    # every second rank: 2 ranks of the group on a node
    assert NETWORK.seconds("all_reduce", 800, 1, 4, stride=2) == pytest.approx(2 * 3 / 4 * 800 / 20)
    # replicas of experts whose group fills a node: one rank on each node
    assert NETWORK.seconds("all_reduce", 800, 1, 2, stride=4) == pytest.approx(800 / 10)
    # of an all-to-all, 4 of 8 parts leave the node, 50 bytes at a tenth of the speed of the 3 that stay
    assert NETWORK.seconds("all_to_all", 800, 1, 8) == pytest.approx(400 / 10)


def test_what_each_zero_stage_sends():
    # 4 ranks in one node in pairs that share the experts; float32: 4 bytes. 100 of 120 parameters have gradients, and 30 of the
    # 40 experts' parameters of a rank, which have 2 replicas
    weights = Weights(
        rest=120, experts=40, touched_rest=100, touched_experts=30, touched_tensors=5, touched_modules=4,
        again_rest=60, again_tensors=3, again_modules=2,
    )  # fmt: skip
    for stage in (0, 1, 2):
        assert gradient_seconds(weights, stage, 4, 2, "float32", NETWORK) == pytest.approx((2 * 3 / 4 * 400 + 120) / 100)
    assert gradient_seconds(weights, 3, 4, 2, "float32", NETWORK) == pytest.approx((3 / 4 * 400 + 60) / 100)
    assert weight_seconds(weights, 0, 2, 4, 2, "float32", NETWORK) == 0
    for stage in (1, 2):
        assert weight_seconds(weights, stage, 2, 4, 2, "float32", NETWORK) == pytest.approx((3 / 4 * 480 + 80) / 100)
    # forward and backward of two modalities: of the rest 2 * (100 + 60) parameters of 4 bytes, of experts 4 * 30, 2 replicas
    assert weight_seconds(weights, 3, 2, 4, 2, "float32", NETWORK) == pytest.approx((3 / 4 * 2 * 160 * 4 + 4 * 30 * 4 / 2) / 100)
    # in 2 * (4 + 2) calls for modules, and one for all experts, as a slow link tells: log2(4) = 2 and log2(2) = 1 starts
    slow = Network(gpus=4, measured={"all_gather": Link(latency_s=1.0, bytes_per_s=1e9)})
    assert weight_seconds(weights, 3, 2, 4, 2, "float32", slow) == pytest.approx(12 * 2 + 1, abs=1e-3)
    # 4 ranks update a quarter of 120 and half of 40; ZeRO 3 meets the tensors in each modality
    rate = EngineRate(step_s=1000.0, tensor_s=100.0, held_s=1.0, owned_s=10.0)
    profile = h200().model_copy(update={"engine": {stage: rate for stage in range(4)}})
    assert engine_seconds(weights, 2, 2, 4, 2, profile) == 1000 + 500 + 160 + 10 * (30 + 20)
    assert engine_seconds(weights, 3, 2, 4, 2, profile) == 1000 + 800 + 160 + 10 * (30 + 20)
    assert engine_seconds(weights, 0, 2, 4, 2, profile) == 1000 + 500 + 160 + 10 * 160


def test_what_a_task_touches():
    run = get_recipe("imp_moe_b")
    cost = ImpCost(run, run.model.to_config(32100, run.tasks))
    sizes = cost.sizes()
    alone = task_weights(sizes, *cost.touched(run.task("image_class")), 4)
    width = 768
    # one modality's patches (3072 raw values) with three tables and a norm, a linear layer before and after the blocks, a head
    own = (3072 * width + width) + (16 + 32 + 32) * width + width + 2 * (width**2 + width) + (1000 * width + 1000)
    blocks = sum(n for name, n in sizes.items() if name.startswith(("imp.blocks.", "imp.norm.")) and ".experts." not in name)
    assert alone.touched_rest == own + blocks
    assert alone.experts == alone.touched_experts == 6 * 16 * 2 * 768 * 3072 // 4
    assert alone.met("rest", 1) == alone.touched_rest and alone.met("rest", 3) == own + 3 * blocks
    # 12 blocks of 2 norms, qkv, norms of q and k, out and two linear layers, where 6 have router and experts instead; and the
    # last norm.
    # Beside them the patches, three tables and a norm, the linear layers before and after, and the head
    assert alone.again_modules == 12 * 8 + 1 and alone.touched_modules == alone.again_modules + 5 + 2 + 1
    paired = task_weights(sizes, *cost.touched(run.task("image_text")), 4)
    # the other modality's words, places, norm and linear layers, two projections and a temperature, and no head
    words = (32100 + 4096) * width + width + 2 * (width**2 + width)
    projections = 2 * ((width * 1024 + 1024) + (1024**2 + 1024) + 2 * 1024)
    assert paired.touched_rest - alone.touched_rest == words + projections + 1 - (1000 * width + 1000)


def test_tokens_and_vectors_that_are_exchanged():
    run = get_recipe("imp_moe_b")
    cost = ImpCost(run, run.model.to_config(32100, run.tasks))
    # image_class on 4 ranks: 8192 / 4 * 256 rows of 768 values of 2 bytes in 6 layers, four times; of them 3/4 go elsewhere
    rows = 8192 // 4 * 256
    expected = 4 * 6 * rows * 768 * 2 * 3 / 4 / 100
    task = run.task("image_class")
    assert exchange_seconds(cost.exchanges(task, 4, 2, 2), 4, NETWORK) == pytest.approx(expected)
    assert exchange_seconds(cost.exchanges(task, 4, 3, 2), 4, NETWORK) == pytest.approx(expected * 6 / 4)  # forward twice
    # image_text: both sides' 8192 vectors of 1024 float32, gathered, and their gradients scattered
    vectors = 2 * 8192 * 1024 * 4
    compared = exchange_seconds(cost.compared(run.task("image_text")), 4, NETWORK)
    assert compared == pytest.approx(2 * vectors * 3 / 4 / 100)
    assert exchange_seconds(cost.compared(task), 4, NETWORK) == 0


def test_what_conditional_linears_send():
    run = get_recipe("imp_moe_b").override(["train.ep_size=4", 'model.conditional_linears=["up","down"]'])
    tokens = 8192 // 4 * 256
    # expert choice at capacity 1: as many rows as tokens; 768 values go to the experts of up, 3072 come back, and the other way
    # round for down, forward and backward, in 6 layers, 2 bytes each, of which 3/4 leave the rank
    sent = ImpCost(run, run.model.to_config(32100, run.tasks)).exchanges(run.task("image_class"), 4, 2, 2)
    assert exchange_seconds(sent, 4, NETWORK) == pytest.approx(6 * 2 * 2 * tokens * (768 + 3072) * 2 * 3 / 4 / 100)
    # one decision for a segment: two matrices of 768 x 3072 all-reduced forward and backward, whatever the tokens
    merged = run.override(["model.gate=modality", "model.router=top_k"])
    sent = ImpCost(merged, merged.model.to_config(32100, merged.tasks)).exchanges(run.task("image_class"), 4, 2, 2)
    assert exchange_seconds(sent, 4, NETWORK) == pytest.approx(6 * 2 * 2 * 768 * 3072 * 2 * 2 * 3 / 4 / 100)


def choice(ep_size: int, seconds: float, gib: float) -> Choice:
    parts = {"tokens to experts": 0.01 * ep_size, "gradients": 0.04 / ep_size, "weights": 0.0}
    return Choice(ep_size, 1 if ep_size <= 2 else 2, gib * 2**30, seconds, parts)


def test_the_best_group_size_is_the_fastest_that_fits():
    choices = [choice(1, 1.0, 40), choice(2, 1.2, 30), choice(4, 1.205, 20), choice(8, 2.0, 10)]
    assert [best(choices, gib).ep_size for gib in (100, 35, 15, 5)] == [1, 4, 8, 8]  # 4 is within 1% of 2, and smaller
    said = advice(choices, 35)
    assert said.startswith("ep_size 4 is best: against 2 a step spends +20.00 ms on exchanging tokens and -10.00 ms on gradients")
    assert "against 8 (whose groups span 2 nodes)" in said and "holds +10.00 GiB" in said
    assert "no size fits into 5 GiB" in advice(choices, 5)
    assert "no other size is possible" in advice(choices[:1], 100)


def test_slow_links_between_nodes_show_in_the_plan():
    run = get_recipe("imp_moe_b").override(["train.ep_size=8"])
    found = plan(run, 2, 8)
    sizes = {c.ep_size: c for c in found.choices}
    assert list(sizes) == [1, 2, 4, 8, 16] and [sizes[n].nodes_of_group for n in (8, 16)] == [1, 2]
    assert sizes[16].communication["tokens to experts"] > 3 * sizes[8].communication["tokens to experts"]
    assert sizes[8].seconds == pytest.approx(found.step_seconds)
    assert best(found.choices, 139).ep_size <= 8
    slower = {c.ep_size: c for c in plan(run, 2, 8, node_link_gbs=5).choices}
    assert slower[16].seconds > sizes[16].seconds and slower[8].communication["gradients"] > sizes[8].communication["gradients"]
    again = plan(run.override(["train.gradient_checkpointing=false"]), 2, 8)
    assert again.times[0].compute < found.times[0].compute and again.times[0].flops == found.times[0].flops
    with pytest.raises(UserError, match="ZeRO 0"):
        plan(run, 2, 8, stage=0)
