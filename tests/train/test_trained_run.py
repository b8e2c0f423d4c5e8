"""A trained run's model holds nothing that was in memory before: what no checkpoint has is as at a start."""

from types import SimpleNamespace

import torch
from torch import nn

from helpers.small_run import MARKS, VOCABULARY, make_run
from imp_ds.train.trained_run import TrainedRun


class Tokenizer(SimpleNamespace):
    def __len__(self) -> int:
        return VOCABULARY


def test_buffers_that_no_checkpoint_has_are_as_at_a_start(monkeypatch):
    """The balanced router counts choices in one; empty memory is filled, and the checkpoint gives all else."""
    empty = nn.Module.to_empty

    def filled(model, **place):
        empty(model, **place)
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.data.fill_(7)
        return model

    monkeypatch.setattr(nn.Module, "to_empty", filled)
    run = make_run(router="top_k_balanced", drop_tokens=False)
    reader = SimpleNamespace(load_weights=lambda model, report, averaged: [p.data.fill_(1) for p in model.parameters()])
    model = TrainedRun(run, SimpleNamespace(tokenizer=Tokenizer(**vars(MARKS))), reader).load_model()
    router = model.imp.blocks[1].feed_forward.router
    assert torch.equal(router.chosen_E, torch.zeros(4, dtype=torch.int64))
    assert all(parameter.eq(1).all() for parameter in model.parameters())
