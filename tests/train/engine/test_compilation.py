"""Compiled blocks: what the compiler makes of them, what is reported of a new graph, and the batches of the warm-up."""

import shutil

import pytest
import torch

from helpers.small_run import make_batch, make_config, make_run
from helpers.words_run import words_batch, words_run
from imp_ds.errors import UserError
from imp_ds.families.imp.pretraining import ImpForPreTraining
from imp_ds.models.initialization import initialize_seeded
from imp_ds.randomness import sample_keys
from imp_ds.train.engine.compilation import CompiledBlocks, tile, uncompiled
from imp_ds.train.engine.layout import check_layout

IMAGES = 2  # the step of small_run whose batch is of images alone


@pytest.fixture(autouse=True)
def forget_graphs():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def build(**model) -> ImpForPreTraining:
    config = make_config(make_run(num_hidden_layers=1, moe_layers="every:1", **model))
    built = ImpForPreTraining(config).train()
    initialize_seeded(built, 0, config.initializer_range)
    return built


class DiscardingEngine:
    """Forward and backward of a step that is never taken."""

    def __init__(self, model: ImpForPreTraining):
        self.model = model

    def forward(self, batch, micro_batches):
        self.loss = self.model(batch)[0]

    def update(self, rate, accept):
        self.loss.backward()
        self.model.zero_grad()


@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler for the CPU needs g++")
def test_the_compiler_changes_results_by_rounding_alone():
    """One block with experts, gated, noisy and with dropout, whose random numbers have to be the same."""
    settings = {"expert_activation": "geglu", "router_noise": 1.0, "hidden_dropout": 0.1}
    plain, compiled = build(**settings), build(**settings)
    blocks = CompiledBlocks(compiled, shapes=1)
    batch = make_batch(IMAGES)
    batch.key_B = torch.arange(8)
    losses = [model(batch)[0] for model in (plain, compiled)]
    for loss in losses:
        loss.backward()
    assert blocks.graphs == 1
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-5)
    trained = [name for name, p in plain.named_parameters() if p.grad is not None]
    assert any("experts.w3" in name for name in trained) and any("router" in name for name in trained)
    for name in trained:
        torch.testing.assert_close(
            compiled.get_parameter(name).grad, plain.get_parameter(name).grad, rtol=1e-4, atol=1e-5, msg=name
        )


LINEARS = dict(conditional_linears=["qkv", "out", "up", "down"], router_noise=1.0, hidden_dropout=0.1)


@pytest.mark.parametrize(
    "settings, graphs",
    # a decision of the segment is part of the one graph; rows whose number is not known lie between five
    [(dict(gate="attribute"), 1), (dict(gate="context", router="top_k", drop_tokens=False), 5)],
    ids=["attribute", "context, drop-free"],
)
def test_conditional_linears_are_compiled(settings, graphs):
    plain, compiled = build(**settings, **LINEARS), build(**settings, **LINEARS)
    blocks = CompiledBlocks(compiled, shapes=1, backend="aot_eager")
    for step in (IMAGES, IMAGES + 3):
        batch = make_batch(step)
        batch.key_B = sample_keys(0, step, 0, 8)
        losses = [model(batch)[0] for model in (plain, compiled)]
        assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-6)
    losses[1].backward()
    assert blocks.graphs == graphs
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in compiled.imp.blocks.parameters())


def test_a_graph_after_the_warm_up_is_reported_and_evaluation_makes_none(capsys):
    model = build()
    blocks = CompiledBlocks(model, shapes=2, backend="aot_eager")
    batch = make_batch(IMAGES)
    blocks.warm(DiscardingEngine(model), [batch], {"image_class": 1}, 1)
    assert blocks.graphs == 1
    assert capsys.readouterr().out.startswith("compiled image_class in ")
    model(batch)
    with uncompiled(), torch.no_grad():
        model(tile(batch, 3))
    assert blocks.graphs == 1 and capsys.readouterr() == ("", "")
    model(tile(batch, 5))
    assert blocks.graphs == 2
    assert "compiled again, for inputs of (5, 16, 32)" in capsys.readouterr().err


def test_hidden_words_are_warmed_from_a_few_texts():
    """The head runs as it is: only the texts' shape makes a graph, the same for any words that are hidden."""
    model = ImpForPreTraining(make_config(words_run())).train()
    blocks = CompiledBlocks(model, shapes=1, backend="aot_eager")
    blocks.warm(DiscardingEngine(model), [tile(words_batch(0).map(lambda x: x[:3]), 8)], {"words": 1}, 1)
    assert blocks.graphs == 1  # the blocks are alike
    loss, _, _ = model(words_batch(2))
    loss.backward()
    assert blocks.graphs == 1 and model.objectives["words"].parts[0].head.dense.weight.grad.abs().max() > 0


def test_a_batch_by_repetition():
    batch = make_batch(0).map(lambda x: x[:3])
    batch.key_B = torch.tensor([10, 11, 12])
    tiled = tile(batch, 7)
    assert tiled.key_B.tolist() == [10, 11, 12, 10, 11, 12, 10]
    assert torch.equal(tiled.inputs["text"]["input_ids"][5], batch.inputs["text"]["input_ids"][2])
    assert len(tile(batch, 2).targets["label"]) == 2


def test_zero_3_is_refused():
    run = make_run()
    run.train.compile = True
    with pytest.raises(UserError, match="hooks on every layer"):
        check_layout(run, 1, {"zero_optimization": {"stage": 3}})
    check_layout(run, 1, {"zero_optimization": {"stage": 2}})
