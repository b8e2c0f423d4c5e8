"""The losses of routers by hand, and what becomes of them under activation checkpointing.

Shapes: B examples, L tokens of one, E experts, M kinds of tokens.
"""

import copy
import math

import pytest
import torch

from helpers.language_models import VOCAB, expert_settings, language_model
from imp_ds.errors import UserError
from imp_ds.models.initialization import initialize_module
from imp_ds.models.uni_moe.experts import expert_feed_forwards, replace_feed_forwards
from imp_ds.models.uni_moe.router_losses import kind_members, preference_loss, preferred_experts, router_losses, separation_loss

IDS = torch.randint(0, VOCAB, (2, 6), generator=torch.Generator().manual_seed(0))
KINDS = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 3, 3, 0, 0, 0]])
VALID = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]]).bool()
LOSSES = dict(router_aux_loss_coef=0.1, router_z_loss_coef=0.01, router_l1_coef=0.3, router_kl_coef=0.2,
              expert_preferences={"image": [0, 1], "audio": [3]})  # fmt: skip


def sparse_model(**changes):
    model = language_model("llama")
    model.facts = replace_feed_forwards(model, expert_settings(**changes))
    torch.manual_seed(7)
    for mixture in expert_feed_forwards(model):
        for module in mixture.modules():
            initialize_module(module, std=1.0)
    return model.train()


def test_preference_by_hand():
    """Example 1 of 2 image tokens and 2 text tokens, experts 0 and 1 of 4 preferred by images:
        image (.5 .5 0 0) against (1 1 0 0): distance (.5 + .5) / 4 = .25;  image (0 0 1 0): (1 + 1 + 1) / 4 = .75;  text counts 0
        sum 1, over 4 tokens: .25
    Example 2 of 1 image token (1 0 0 0): (0 + 1) / 4 = .25, 1 text token, and padding that would prefer all: .25 / 2 = .125
    Mean: .1875."""
    probability = torch.tensor([
        [[0.5, 0.5, 0, 0], [0, 0, 1.0, 0], [0.25, 0.25, 0.25, 0.25], [1.0, 0, 0, 0]],
        [[1.0, 0, 0, 0], [0, 0, 0, 1.0], [0, 0, 1.0, 0], [0, 0, 1.0, 0]],
    ])  # fmt: skip
    kinds, valid = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 1]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    wanted = preferred_experts({"image": [0, 1]}, 4, torch.device("cpu"))
    assert wanted.tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert preference_loss(probability, kind_members(kinds, valid, probability), wanted).item() == pytest.approx(0.1875)


def test_separation_by_hand():
    """Example 1: text has the mean of (1 0) and (.5 .5), (3/4 1/4); audio (1/4 3/4).
        KL(text || audio) = 3/4 log 3 + 1/4 log 1/3 = 1/2 log 3, and the same the other way: 1 - 1/2 log 3
    Example 2 has a single kind, and does not count; 3 has none."""
    probability = torch.tensor([[[1.0, 0], [0.5, 0.5], [0.25, 0.75]], [[0.5, 0.5]] * 3, [[0.1, 0.9]] * 3])
    kinds, valid = torch.tensor([[0, 0, 3], [2, 2, 1], [0, 1, 2]]), torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0]]).bool()
    members = kind_members(kinds, valid, probability)
    assert separation_loss(probability, members).item() == pytest.approx(1 - 0.5 * math.log(3))
    assert separation_loss(probability[1:], members[1:]).item() == 0.0
    # a probability of exactly 0 is a finite distance away, with a finite gradient
    certain = torch.tensor([[[1.0, 0], [0, 1.0], [0, 1.0]]], requires_grad=True)
    separation_loss(certain, kind_members(torch.tensor([[0, 3, 3]]), None, certain)).backward()
    assert certain.grad.isfinite().all()


def test_all_are_weighted_and_summed_over_layers():
    """Against the parts, each with its coefficient alone; the reports carry no gradient."""
    model = sparse_model()
    model.facts.set(VALID, KINDS)

    def loss(**settings) -> torch.Tensor | None:
        model(input_ids=IDS)
        return router_losses(model, expert_settings(**settings))[0]

    assert loss() is None
    coefficients = {name: value for name, value in LOSSES.items() if name != "expert_preferences"}
    parts = []
    for name, value in coefficients.items():
        model.facts.set(VALID, KINDS)
        parts.append(loss(**{name: value, "expert_preferences": LOSSES["expert_preferences"]}))
    model.facts.set(VALID, KINDS)
    model(input_ids=IDS)
    mixtures = expert_feed_forwards(model)
    z = sum(mixture.logits_BLE[VALID].logsumexp(-1).square().view(-1) for mixture in mixtures)
    by_example = torch.stack([part.mean() for part in z.split([5, 4])]).mean()  # each example counts alike
    torch.testing.assert_close(parts[1], 0.01 * by_example)
    found, reports = router_losses(model, expert_settings(**LOSSES))
    torch.testing.assert_close(found, sum(parts))
    assert len(reports) == 2 and not any(value.requires_grad for report in reports for value in report)
    copy.deepcopy(model)  # nothing that hangs on a graph is left in it


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_keeps_the_losses_gradients(reentrant):
    plain = sparse_model(modality_maps=True)
    saved = copy.deepcopy(plain)
    saved.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    for model in (plain, saved):
        model.facts.set(VALID, KINDS)
        hidden = model(input_ids=IDS).logits
        if reentrant and model is saved:
            with pytest.raises(UserError, match="use_reentrant"):
                router_losses(model, expert_settings(**LOSSES))
            return
        loss, _ = router_losses(model, expert_settings(**LOSSES))
        (loss + hidden.square().mean()).backward()
        assert all(mixture.logits_BLE is None for mixture in expert_feed_forwards(model))
    for (name, one), other in zip(plain.named_parameters(), saved.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name
    assert all(mixture.maps.weight.grad[[0, 1, 3]].any() for mixture in expert_feed_forwards(plain))


def test_preferences_that_are_missing_are_refused():
    with pytest.raises(UserError, match="(?s)router_l1_coef.*text, image, video, audio.*0 to 3"):
        preferred_experts({}, 4, torch.device("cpu"))


def test_losses_are_taken_once_after_a_pass():
    model = sparse_model()
    with pytest.raises(RuntimeError, match="no pass"):
        router_losses(model, expert_settings())
