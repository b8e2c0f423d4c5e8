"""Model FLOPs: against torch's own counter on a real step, and against sums worked out by hand."""


import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from helpers.likelihood_run import ORDER as ORDER_OF_CANDIDATES
from helpers.likelihood_run import likelihood_batch, likelihood_config, likelihood_run
from helpers.small_run import ORDER, make_batch, make_config, make_run
from helpers.words_run import words_batch, words_run
from imp_ds.errors import UserError
from imp_ds.families.imp.costs.flops import step_flops, step_kernels
from imp_ds.families.imp.costs.flops_experts import expert_rows
from imp_ds.families.imp.costs.tokens import candidate_sequences
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.moe.kernels import compute
from imp_ds.objectives import Classification
from imp_ds.recipes import get_recipe
from imp_ds.tasks import Batch

DENSE = dict(num_experts=0)
GATED = dict(expert_activation="geglu", capacity_factor=1.5)


def audio_as_it_is_seen(batch: Batch) -> Batch:
    """1.28 s are 10 frames at a hop of 2048 samples, so 3 x 16 patches of 4 x 4; the batches of other tests have 8."""
    if "audio" in batch.inputs:
        size = batch.targets["label"].shape[0]
        batch.inputs["audio"] = dict(input_features=torch.randn(size, 48, 16), feature_positions=torch.rand(size, 48, 2) * 0.9)
    return batch


@pytest.mark.parametrize("model", [DENSE, {}, GATED], ids=["dense", "experts", "gated experts"])
@pytest.mark.parametrize("step", range(3), ids=ORDER)
def test_flops_are_those_that_torch_counts(model, step, monkeypatch):
    # what cannot be seen into as single products, fused attention and the CPU's experts, is computed the plain way
    plain = lambda x, index, weight, count, *weights: compute.stacked_mixture(x, index, weight, None, *weights)  # noqa: E731
    monkeypatch.setattr(compute, "cpu_mixture", plain)
    run = make_run(**model)
    config, batch = make_config(run), audio_as_it_is_seen(make_batch(step))
    net = ImpForPreTraining(config)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(batch)[0].backward()
    expected = step_flops(run.task(batch.task), config, run.data, world=1)
    assert expected == counter.get_total_flops() > 1e6


ALL = ["qkv", "out", "up", "down"]
DROP_FREE = dict(router="top_k", drop_tokens=False, conditional_linears=ALL)
CONDITIONAL = {
    "modality": dict(gate="modality"),
    "task": dict(gate="task", conditional_linears=ALL, experts_per_token=3),
    "attribute": dict(gate="attribute", conditional_linears=ALL, share_decisions=False),
    "token": dict(conditional_linears=["up", "down"], capacity_factor=1.5),
    "token, drop-free": dict(DROP_FREE, experts_per_token=1),
    "context": dict(gate="context", conditional_linears=["up", "down"], share_decisions=False),
    "context, whole": dict(gate="context"),
}


@pytest.mark.parametrize("name", CONDITIONAL)
@pytest.mark.parametrize("step", range(3), ids=ORDER)
def test_flops_of_conditional_linears_are_those_that_torch_counts(name, step, monkeypatch):
    plain = lambda x, index, weight, count, *weights: compute.stacked_mixture(x, index, weight, None, *weights)  # noqa: E731
    monkeypatch.setattr(compute, "cpu_mixture", plain)
    run = make_run(**CONDITIONAL[name])
    config, batch = make_config(run), audio_as_it_is_seen(make_batch(step))
    if "text" in batch.inputs:
        batch.inputs["text"]["attention_mask"].fill_(1)  # drop-free rows are counted as of texts without padding
    net = ImpForPreTraining(config)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(batch)[0].backward()
    # torch counts no product with a vector: of every token with the query of a context pool, three times
    tokens = sum(inputs[next(iter(inputs))].shape[:2].numel() for inputs in batch.inputs.values())
    pools = {"context": 32 + 64, "context, whole": 32}.get(name, 0)
    expected = counter.get_total_flops() + 6 * tokens * pools
    assert step_flops(run.task(batch.task), config, run.data, world=1) == expected > 1e6


def test_a_merged_linear_costs_its_sum_and_one_product():
    # width 32, feed-forward 64, one of two layers; images of 16 tokens, 8 of them; 4 experts of which 2 are summed
    run = make_run(gate="modality")
    config, task = make_config(run), run.task("image_class")
    dense = make_run(num_experts=0, qk_norm=True)
    extra = 6 * 2 * 2 * 32 * 64 + 6 * 32 * 4  # two layers' sums of two matrices, and one gate for both
    plain = step_flops(task, make_config(dense), run.data, 1)
    assert step_flops(task, config, run.data, 1) == plain + extra
    # a rank that holds two of four experts sums both, whoever is chosen
    spread = sum(kernel.flops for kernel in step_kernels(task, config, run.data, 1, 4, ep_size=2))
    assert spread == plain + extra


def test_flops_of_hidden_words_are_those_that_torch_counts():
    run, batch = words_run(), words_batch(0)
    config = make_config(run)
    net = ImpForPreTraining(config)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(batch)[0].backward()
    task = run.task("words")
    assert step_flops(task, config, run.data, world=1) == counter.get_total_flops() > 1e6
    # 8 texts, of which at most 8 of 12 tokens are hidden, 32 wide; 50 words. Two ranks do it in two halves
    head = 6 * 8 * 8 * 32 * (32 + 50)
    without = task.model_copy(update={"objectives": [Classification(modality="text", num_classes=2)]})
    for world in (1, 2):
        two_classes = step_flops(without, config, run.data, world)
        assert step_flops(task, config, run.data, world) - two_classes == head - 6 * 8 * 32 * 2


def test_flops_of_a_large_dense_step_by_hand():
    # imp_b, image_class: 8192 samples of 256 tokens; 12 layers of (4 + 8) D^2 products and two of 256 x 256 x D a sample,
    # 2 D^2 around the blocks, a patch of one frame of 16 * 16 * 3 = 768 values whose backward is one product, 1000 classes
    run = get_recipe("imp_b")
    config = run.model.to_config(32100, run.tasks)
    tokens, width = 8192 * 256, 768
    layers = 12 * 6 * (12 * width**2 * tokens + 2 * 256 * width * tokens)
    rest = 6 * 2 * width**2 * tokens + 4 * 768 * width * tokens + 6 * width * 1000 * 8192
    for world in (1, 8, 64):  # nothing of a dense step depends on the ranks
        assert step_flops(run.task("image_class"), config, run.data, world) == pytest.approx(layers + rest, rel=1e-12)


def test_similarities_count_the_whole_batch_on_every_rank():
    run = get_recipe("imp_b")
    config = run.model.to_config(32100, run.tasks)
    for world in (1, 4):
        kernels = step_kernels(run.task("image_text"), config, run.data, world, 2)
        # two sides of 8192 / world rows against 8192 columns, 1024 wide
        assert sum(k.flops for k in kernels if k.flops == 6 * (8192 // world) * 8192 * 1024) == 12 * 8192**2 // world * 1024


@pytest.mark.parametrize(
    "changes, rows",
    [
        ({}, 4 * 4 * 4),  # 16 tokens of a sample are a group: round(16 / 4) = 4 slots for each of 4 experts, 4 samples
        ({"capacity_factor": 1.25}, 4 * 4 * 5),
        ({"router": "top_k", "experts_per_token": 2}, 4 * 4 * 8),
        ({"router": "top_k", "experts_per_token": 2, "capacity_factor": 1.25}, 4 * 4 * 10),
        ({"router": "top_k", "experts_per_token": 2, "drop_tokens": False}, 64 * 2),
        ({"router": "top_k", "experts_per_token": 2, "drop_tokens": False, "capacity_factor": 9.0}, 64 * 2),
        ({"gate": "modality", "experts_per_token": 3}, 64),  # each token meets one merged matrix
    ],
)
def test_rows_that_experts_compute(changes, rows):
    assert expert_rows(make_config(make_run(**changes)), samples=4, length=16) == rows


@pytest.mark.parametrize("model", [DENSE, dict(gate="modality")], ids=["dense", "modality"])
@pytest.mark.parametrize("name", ["names", "pairs", "words"])
def test_flops_among_candidates_are_those_that_torch_counts(model, name):
    run, batch = likelihood_run(), likelihood_batch(ORDER_OF_CANDIDATES.index(name))
    run.model = make_run(**model).model
    config = likelihood_config(run)
    # of several texts one is drawn, and all are padded to the longest; all experts that are merged count
    net = ImpForPreTraining(config)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(batch)[0].backward()
    task = run.task(name)
    assert step_flops(task, config, run.data, world=1) == counter.get_total_flops() > 1e6
    # seven names on two ranks are four each: what fills up is computed too; and each rank merges experts
    twice = step_flops(task, config, run.data, world=2)
    assert (twice > step_flops(task, config, run.data, world=1)) == (name == "names" or "gate" in model)


def test_names_that_only_the_data_tell_cannot_be_counted():
    run = likelihood_run()
    objective = run.task("names").objectives[0].model_copy(update={"candidates": "label_names"})
    task = run.task("names").model_copy(update={"objectives": [objective]})
    config = run.model.to_config(50, [task])
    with pytest.raises(UserError, match="known to the data alone"):
        step_flops(task, config, run.data, 1)
    listed = task.model_copy(update={"source": task.source.model_copy(update={"label_names": ["a b", "c"]})})
    (among,) = candidate_sequences(listed, config).values()
    assert among.segments == (("text", 1), ("text", 3))  # "z a b"
