"""Model FLOPs of IMP where a part is frozen, against torch's own counter on a real step."""

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from families.test_flops import audio_as_it_is_seen
from helpers.small_run import ORDER, make_batch, make_config, make_run
from imp_ds.families.imp.costs.cost import ImpCost
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.families.trainable import freeze_others
from imp_ds.moe.kernels import compute

PARTS = {
    "heads": ["objectives.*", "imp.projections.*"],
    "norms": ["*norm*", "objectives.*", "imp.projections.*"],
    "last layer": ["imp.blocks.1.*"],
    "queries of the last layer": ["imp.blocks.1.attention.qkv.*", "imp.norm.*"],
    "experts": ["*.experts.*"],
    "first layer": ["imp.blocks.0.feed_forward.*", "imp.post_encoder.*"],
    "patches": ["imp.embeddings.*", "objectives.*", "imp.projections.*"],
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("step", range(3), ids=ORDER)
def test_flops_of_a_part_are_those_that_torch_counts(part, step, monkeypatch):
    plain = lambda x, index, weight, count, *weights: compute.stacked_mixture(x, index, weight, None, *weights)  # noqa: E731
    monkeypatch.setattr(compute, "cpu_mixture", plain)
    run = make_run()
    run.train.trainable = PARTS[part]
    config, batch = make_config(run), audio_as_it_is_seen(make_batch(step))
    net = ImpForPreTraining(config)
    freeze_others(net, run.train.trainable)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(batch)[0].backward()
    cost, task = ImpCost(run, config), run.task(batch.task)
    assert cost.flops(task, 1) == pytest.approx(counter.get_total_flops(), rel=1e-12)
    assert sum(kernel.flops for kernel in cost.kernels(task, 1, 4)) == pytest.approx(cost.flops(task, 1))


def test_all_that_is_named_costs_what_no_pattern_costs():
    """But for the order in which kernels are summed."""
    for model in ({}, dict(gate="modality"), dict(num_experts=0)):
        run = make_run(**model)
        every, named = (
            ImpCost(run, make_config(run)),
            run.model_copy(update={"train": run.train.model_copy(update={"trainable": ["*"]})}),
        )
        of_part = ImpCost(named, make_config(named))
        for task in run.tasks:
            assert of_part.flops(task, 1) == pytest.approx(every.flops(task, 1), rel=1e-12)
            moved = [sum(kernel.bytes for kernel in cost.kernels(task, 2, 4, 2)) for cost in (of_part, every)]
            assert moved[0] == pytest.approx(moved[1], rel=1e-12)
            for again in (False, True):
                assert of_part.activation_bytes(task, 2, 4, again) == every.activation_bytes(task, 2, 4, again)


def test_layers_before_the_first_trained_one_keep_nothing():
    """Of image_class 8 images of 16 tokens, 32 wide, 64 in the feed-forward, 4 bytes. The head alone keeps nothing of the
    encoder; of the last layer, whose linear layers are trained, 10 widths (with QK-norm) and two hidden ones are kept."""
    run = make_run(num_experts=0, qk_norm=True)
    task, kept = run.task("image_class"), {}
    for name, trainable in {
        "head": ["objectives.*"],
        "last": ["imp.blocks.1.*"],
        "up": ["imp.blocks.1.feed_forward.up.*"],
    }.items():
        part = run.model_copy(update={"train": run.train.model_copy(update={"trainable": trainable})})
        kept[name] = ImpCost(part, make_config(part)).activation_bytes(task, 1, 4, False)
    tokens, passing = 8 * 16, 2 * 8 * 16 * (64 + 32)
    assert kept["head"] == 0
    assert kept["last"] == 4 * (tokens * (10 * 32 + 2 * 64 + 3 * 32) + passing)
    # queries' input and the last linear layer's input are not kept, since nothing wants their weights' gradients
    assert kept["up"] == kept["last"] - 4 * tokens * (32 + 64)
