"""Expert choice on cases small enough to work out by hand.

The hand case: 2 experts, router weight = identity, so a token is its own pair of logits. With softmax,

    token   logits       probability    (logsumexp)^2
    0       (ln 3, 0)    3/4, 1/4       (ln 4)^2
    1       (0, ln 3)    1/4, 3/4       (ln 4)^2
    2       (ln 9, 0)    9/10, 1/10     (ln 10)^2
    3       (0, 0)       1/2, 1/2       (ln 2)^2

Expert 0 ranks 2, 0, 3, 1 and expert 1 ranks 1, 3, 0, 2.

Shapes: T tokens, S tokens of a group, D width, E experts, N rows in expert order.
"""

from math import log

import pytest
import torch
import torch.nn.functional as F

from imp_ds.errors import UserError
from imp_ds.moe.routers.expert_choice import ExpertChoiceOptions, ExpertChoiceRouter
from imp_ds.moe.routers.registry import build_router
from imp_ds.moe.routing import RoutingContext, capacity, router_z_loss

HAND_TD = torch.tensor([[log(3), 0.0], [0.0, log(3)], [log(9), 0.0], [0.0, 0.0]])
SQUARES = [log(4) ** 2, log(4) ** 2, log(10) ** 2, log(2) ** 2]


def hand_router(capacity_factor: float) -> ExpertChoiceRouter:
    router = ExpertChoiceRouter(2, 2, ExpertChoiceOptions(capacity_factor=capacity_factor))
    router.weight.data = torch.eye(2)
    return router


def choices(routing) -> list[dict[int, float]]:
    """For each expert {token: weight} of the slots that count."""
    rows = zip(routing.token_index_N.view(2, -1).tolist(), routing.weight_N.view(2, -1).tolist())
    return [{token: weight for token, weight in zip(*row) if weight > 0} for row in rows]


@pytest.mark.parametrize(
    "tokens, experts, factor, slots",
    [
        (2048, 16, 1.0, 128),  # the release: C = 128 at groups of 2,048 and 16 experts
        (2048, 16, 2.0, 256),
        (16, 4, 1.0, 4),
        (17, 4, 1.0, 4),  # 4.25
        (19, 4, 1.0, 5),  # 4.75
        (18, 4, 1.0, 4),  # 4.5: a half becomes the even number
        (22, 4, 1.0, 6),  # 5.5
        (10, 4, 1.0, 2),  # 2.5
        (3, 16, 1.0, 1),  # 0.19: never none
        (4, 2, 8.0, 4),  # 16: no more than there are tokens
    ],
)
def test_capacity(tokens, experts, factor, slots):
    assert capacity(tokens, experts, factor) == slots


def test_each_expert_takes_its_best_tokens():
    # C = 4 / 2 = 2
    routing = hand_router(1.0)(HAND_TD, RoutingContext(4))
    assert routing.token_index_N.shape == routing.weight_N.shape == (4,) and routing.count_E is None
    expert0, expert1 = choices(routing)
    assert expert0 == pytest.approx({2: 0.9, 0: 0.75}) and expert1 == pytest.approx({1: 0.75, 3: 0.5})
    # every token is taken; weights 0.9 + 0.75 = 1.65 and 0.75 + 0.5 = 1.25 of 2.9 in 4 slots
    assert routing.report.dropped_fraction.item() == pytest.approx(0.0)
    assert routing.report.usage_E.tolist() == pytest.approx([1.65 / 2.9, 1.25 / 2.9])
    assert routing.report.mean_combine_weight.item() == pytest.approx(2.9 / 4)
    assert routing.report.z_loss.item() == pytest.approx(sum(SQUARES) / 4)


def test_a_token_may_be_taken_by_both_and_keeps_its_probabilities():
    # C = round(1.5 * 4 / 2) = 3: tokens 0 and 3 are taken twice, and nothing is renormalised
    expert0, expert1 = choices(hand_router(1.5)(HAND_TD, RoutingContext(4)))
    assert expert0 == pytest.approx({2: 0.9, 0: 0.75, 3: 0.5}) and expert1 == pytest.approx({1: 0.75, 3: 0.5, 0: 0.25})


def test_tokens_may_be_dropped():
    # C = round(0.5 * 4 / 2) = 1: tokens 0 and 3 are taken by nobody
    routing = hand_router(0.5)(HAND_TD, RoutingContext(4))
    assert choices(routing) == [pytest.approx({2: 0.9}), pytest.approx({1: 0.75})]
    assert routing.report.dropped_fraction.item() == pytest.approx(0.5)
    assert routing.report.usage_E.tolist() == pytest.approx([0.9 / 1.65, 0.75 / 1.65])
    assert routing.report.mean_combine_weight.item() == pytest.approx(1.65 / 2)


def test_padding_is_never_taken():
    # token 2 would be the first choice of expert 0
    valid_T = torch.tensor([True, True, False, True])
    routing = hand_router(1.0)(HAND_TD, RoutingContext(4, valid_T))
    assert choices(routing) == [pytest.approx({0: 0.75, 3: 0.5}), pytest.approx({1: 0.75, 3: 0.5})]
    assert routing.report.z_loss.item() == pytest.approx((SQUARES[0] + SQUARES[1] + SQUARES[3]) / 3)
    assert routing.report.dropped_fraction.item() == pytest.approx(0.0)  # of the three tokens that are no padding


def test_slots_without_a_token_count_for_nothing():
    # one token and C = 2: the second slot of each expert has to point at padding, with weight 0
    routing = hand_router(1.0)(HAND_TD, RoutingContext(4, torch.tensor([False, True, False, False])))
    assert choices(routing) == [pytest.approx({1: 0.25}), pytest.approx({1: 0.75})]
    assert sorted(routing.weight_N[:2].tolist()) == pytest.approx([0.0, 0.25])
    assert routing.report.mean_combine_weight.item() == pytest.approx(0.5)  # the mean of the two slots that hold a token
    assert routing.report.dropped_fraction.item() == pytest.approx(0.0)


def test_a_group_of_nothing_but_padding_reports_zeros():
    routing = hand_router(1.0)(HAND_TD, RoutingContext(2, torch.tensor([True, True, False, False])))
    report = routing.report
    assert torch.isfinite(torch.stack([report.z_loss, report.mean_combine_weight, report.dropped_fraction])).all()
    # the mean over the two groups of (ln 4)^2 and 0
    assert routing.report.z_loss.item() == pytest.approx(log(4) ** 2 / 2)


def test_tokens_compete_only_inside_their_group():
    # groups {0, 1} and {2, 3}, C = 1: 0 for expert 0 and 1 for expert 1; then 2 and 3. Slots lie by expert, then by group.
    routing = hand_router(1.0)(HAND_TD, RoutingContext(2))
    assert routing.token_index_N.tolist() == [0, 2, 1, 3]
    torch.testing.assert_close(routing.weight_N, torch.tensor([0.75, 0.9, 0.75, 0.5]))


def test_z_loss_is_the_mean_of_group_means():
    logits_GSE = HAND_TD.view(2, 2, 2)
    valid_GS = torch.tensor([[True, True], [True, False]])
    assert router_z_loss(logits_GSE, None).item() == pytest.approx(sum(SQUARES) / 4)
    # group 0: (ln 4)^2; group 1: (ln 10)^2, its only token; not the mean over the three tokens
    assert router_z_loss(logits_GSE, valid_GS).item() == pytest.approx((log(4) ** 2 + log(10) ** 2) / 2)


def test_gradients_of_z_loss_and_of_weights_equal_float64():
    torch.manual_seed(0)
    x_TD, weight_ED = torch.randn(12, 5), torch.randn(3, 5)
    router = ExpertChoiceRouter(5, 3)
    router.weight.data = weight_ED.clone()
    routing = router(x_TD, RoutingContext(6))
    routing.report.z_loss.backward(retain_graph=True)
    z_grad = router.weight.grad.clone()
    router.weight.grad = None
    routing.weight_N.square().sum().backward()

    exact = weight_ED.double().requires_grad_()
    logits_TE = F.linear(x_TD.double(), exact)
    (expected,) = torch.autograd.grad(logits_TE.exp().sum(1).log().square().mean(), exact, retain_graph=True)
    torch.testing.assert_close(z_grad.double(), expected, rtol=1e-5, atol=1e-6)
    chosen = logits_TE.exp() / logits_TE.exp().sum(1, keepdim=True)
    total = sum(chosen[routing.token_index_N.view(3, -1)[e], e].square().sum() for e in range(3))
    (expected,) = torch.autograd.grad(total, exact)
    torch.testing.assert_close(router.weight.grad.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("autocast", [False, True])
def test_computes_in_float32_inside_a_bfloat16_model(autocast):
    torch.manual_seed(0)
    router = ExpertChoiceRouter(64, 4)
    router.weight.data.normal_()
    if not autocast:
        router.bfloat16()
    x_TD = torch.randn(32, 64).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        routing = router(x_TD, RoutingContext(32))
    scores_TE = F.linear(x_TD.float(), router.weight.float()).softmax(1)
    expected_N = torch.cat([scores_TE[routing.token_index_N.view(4, -1)[e], e] for e in range(4)])
    assert routing.weight_N.dtype == routing.report.z_loss.dtype == torch.float32
    torch.testing.assert_close(routing.weight_N, expected_N, rtol=1e-6, atol=1e-7)
    # the probabilities of bfloat16 logits are visibly others, so the comparison above can tell
    coarse_TE = F.linear(x_TD, router.weight.bfloat16()).float().softmax(1)
    assert (coarse_TE - scores_TE).abs().max() > 1e-3


def test_an_unknown_router_is_named():
    with pytest.raises(UserError, match="(?s)unknown router.*top_hat.*expert_choice"):
        build_router("top_hat", 8, 2)
