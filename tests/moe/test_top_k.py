"""Token choice on cases small enough to work out by hand.

The hand case: 3 experts, router weight = identity, so a token is its own logits; their exponentials are given.

    token   exponentials   probability
    0       6, 3, 1        0.6, 0.3, 0.1
    1       5, 1, 4        0.5, 0.1, 0.4
    2       7, 2, 1        0.7, 0.2, 0.1
    3       2, 3, 5        0.2, 0.3, 0.5

First choices: 0, 0, 0, 2. First two: (0, 1), (0, 2), (0, 1), (2, 1).

Shapes: T tokens, S tokens of a group, E experts, N rows in expert order.
"""

import pytest
import torch

from imp_ds.moe.routers.top_k import TopKOptions, TopKRouter
from imp_ds.moe.routing import RoutingContext, balance_loss
from imp_ds.randomness import sample_keys

EXPONENTIALS = [[6.0, 3.0, 1.0], [5.0, 1.0, 4.0], [7.0, 2.0, 1.0], [2.0, 3.0, 5.0]]
HAND_TE = torch.tensor(EXPONENTIALS).log()


def route(k: int, drop: bool, factor: float = 1.0, context: RoutingContext | None = None, x_TE=HAND_TE):
    options = TopKOptions(experts_per_token=k, drop_tokens=drop, capacity_factor=factor)
    router = TopKRouter(3, 3, options)
    router.weight.data = torch.eye(3)
    return router(x_TE, context or RoutingContext(len(x_TE)))


def choices(routing) -> list[dict[int, float]]:
    """For each expert {token: weight} of the rows that count."""
    count = [len(routing.weight_N) // 3] * 3 if routing.count_E is None else routing.count_E.tolist()
    rows = zip(routing.token_index_N.split(count), routing.weight_N.split(count))
    return [{t: w for t, w in zip(tokens.tolist(), weights.tolist()) if w > 0} for tokens, weights in rows]


def test_one_choice_keeps_its_probability():
    routing = route(1, drop=False)
    assert routing.count_E.tolist() == [3, 0, 1] and routing.token_index_N.tolist() == [0, 1, 2, 3]
    assert choices(routing) == [pytest.approx({0: 0.6, 1: 0.5, 2: 0.7}), {}, pytest.approx({3: 0.5})]
    # weights 1.8, 0 and 0.5 of 2.3 in four rows
    assert routing.report.usage_E.tolist() == pytest.approx([1.8 / 2.3, 0.0, 0.5 / 2.3])
    assert routing.report.mean_combine_weight.item() == pytest.approx(2.3 / 4) and routing.report.dropped_fraction.item() == 0.0


def test_two_choices_are_renormalised():
    first, second, third = choices(route(2, drop=False))
    assert first == pytest.approx({0: 6 / 9, 1: 5 / 9, 2: 7 / 9})
    assert second == pytest.approx({0: 3 / 9, 2: 2 / 9, 3: 3 / 8})
    assert third == pytest.approx({1: 4 / 9, 3: 5 / 8})


def test_an_expert_keeps_the_tokens_that_weigh_most():
    # C = round(1.0 * 1 * 4 / 3) = 1: expert 0 keeps token 2 of 0, 1 and 2; expert 1 was chosen by none
    routing = route(1, drop=True)
    assert routing.count_E is None and len(routing.weight_N) == 3
    assert choices(routing) == [pytest.approx({2: 0.7}), {}, pytest.approx({3: 0.5})]
    assert routing.report.dropped_fraction.item() == pytest.approx(0.5)  # tokens 0 and 1
    # C = round(0.75 * 2 * 4 / 3) = 2, weights as without dropping
    first, second, third = choices(route(2, drop=True, factor=0.75))
    assert first == pytest.approx({2: 7 / 9, 0: 6 / 9})
    assert second == pytest.approx({3: 3 / 8, 0: 3 / 9}) and third == pytest.approx({3: 5 / 8, 1: 4 / 9})


def test_room_for_all_is_drop_free_routing():
    torch.manual_seed(0)
    x_TE = torch.randn(24, 3)
    context = RoutingContext(8)
    # C = round(3 * 2 * 8 / 3) = 16, cut to 8
    roomy, free = route(2, True, 3.0, context, x_TE), route(2, False, 1.0, context, x_TE)
    assert choices(roomy) == [pytest.approx(expert) for expert in choices(free)]
    assert roomy.report.usage_E.tolist() == pytest.approx(free.report.usage_E.tolist())
    assert roomy.report.balance_loss == free.report.balance_loss


@pytest.mark.parametrize("drop", [False, True])
def test_padding_is_never_chosen(drop):
    valid_T = torch.tensor([True, True, False, True])
    routing = route(1, drop, 2.0, RoutingContext(4, valid_T))  # C = round(8 / 3) = 3
    assert choices(routing) == [pytest.approx({0: 0.6, 1: 0.5}), {}, pytest.approx({3: 0.5})]
    assert routing.report.dropped_fraction.item() == pytest.approx(0.0)
    if not drop:
        assert routing.count_E.tolist() == [2, 0, 1]
    # chosen (2/3, 0, 1/3), mean probabilities 1.3/3, 0.7/3, 1.0/3 of the three tokens that are none
    expected = 3 * (2 / 3 * 1.3 / 3 + 1 / 3 * 1.0 / 3)
    assert routing.report.balance_loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("drop", [False, True])
def test_nothing_but_padding(drop):
    routing = route(2, drop, 1.0, RoutingContext(4, torch.zeros(4, dtype=torch.bool)))
    assert choices(routing) == [{}, {}, {}]
    assert (0 if drop else len(routing.weight_N)) == 0
    assert routing.report.balance_loss.item() == routing.report.z_loss.item() == 0.0


def test_groups_do_not_know_of_each_other():
    # groups {0, 1} and {2, 3}, C = round(2 / 3) = 1: expert 0 keeps 0 of the first and 2 of the second
    routing = route(1, True, 1.0, RoutingContext(2))
    assert choices(routing) == [pytest.approx({0: 0.6, 2: 0.7}), {}, pytest.approx({3: 0.5})]


def test_balance_loss():
    # choices (3/4, 0, 1/4); mean probabilities (2.0, 0.9, 1.1) / 4
    assert route(1, False).report.balance_loss.item() == pytest.approx(3 * (3 / 4 * 2.0 / 4 + 1 / 4 * 1.1 / 4))
    # 1 when choices and probabilities are even, whatever the number of experts
    even = torch.full((1, 4, 4), 0.25)
    assert balance_loss(even, torch.eye(4)[None], None).item() == pytest.approx(1.0)
    # two groups: the mean of the groups' losses, not the loss of the whole
    both = torch.tensor([[[0.9, 0.1]], [[0.1, 0.9]]])
    assert balance_loss(both, both.round(), None).item() == pytest.approx(2 * 0.9)


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("k", [1, 2])
def test_gradients_reach_the_router_as_in_float64(k, drop):
    torch.manual_seed(0)
    x_TE, direction_T = torch.randn(12, 3), torch.randn(12)
    router = TopKRouter(3, 3, TopKOptions(experts_per_token=k, drop_tokens=drop, capacity_factor=0.75))
    router.weight.data.normal_()
    routing = router(x_TE, RoutingContext(6))
    (routing.report.balance_loss + (routing.weight_N * direction_T[routing.token_index_N]).sum()).backward()

    weight = router.weight.detach().double().requires_grad_()
    probability_TE = (x_TE.double() @ weight.T).softmax(1)
    best_TK = probability_TE.topk(k).indices
    total = 0.0
    for expert, rows in enumerate(choices(routing)):
        for t in rows:
            scale = probability_TE[t, best_TK[t]].sum() if k > 1 else 1.0
            total = total + probability_TE[t, expert] / scale * direction_T[t].double()
    for group in (slice(0, 6), slice(6, 12)):
        chosen_E = torch.bincount(best_TK[group].flatten(), minlength=3) / (6 * k)
        total = total + 3 * (chosen_E * probability_TE[group].mean(0)).sum() / 2
    total.backward()
    torch.testing.assert_close(router.weight.grad.double(), weight.grad, rtol=1e-4, atol=1e-6)


def test_noise_is_of_the_samples_and_scaled_by_the_number_of_experts():
    router = TopKRouter(3, 3, TopKOptions(experts_per_token=1, drop_tokens=False), noise=1.5)
    router.weight.data.zero_()  # the probabilities are those of the noise alone
    seen, choose = {}, router.choose
    router.choose = lambda logits_GSE, *known: seen.update(logits=logits_GSE) or choose(logits_GSE, *known)
    key_B = sample_keys(0, 0, 0, 500)
    router(torch.zeros(500 * 8, 3), RoutingContext(8, None, key_B))
    noise_BLE = seen.pop("logits")
    # standard deviation 1.5 / 3; of 12,000 draws its error is 0.5 / sqrt(24000) = 0.0032, and five of them are allowed
    assert noise_BLE.std().item() == pytest.approx(0.5, abs=0.016)
    router(torch.zeros(2 * 8, 3), RoutingContext(8, None, key_B[[7, 3]]))
    assert torch.equal(seen.pop("logits"), noise_BLE[[7, 3]])  # whoever the neighbours are
    router(torch.zeros(2 * 8, 3), RoutingContext(8))
    assert not seen["logits"].any()  # without keys there is none


@pytest.mark.parametrize("k, renormalise, expected", [
    (1, None, [0.5]), (1, True, [1.0]), (1, False, [0.5]),
    (2, None, [0.625, 0.375]), (2, True, [0.625, 0.375]), (2, False, [0.5, 0.3]),
])  # fmt: skip
def test_weights_are_renormalised_where_that_is_asked_for(k, renormalise, expected):
    """Probabilities .5, .3 and .2; .5 / .8 = .625."""
    router = TopKRouter(3, 3, TopKOptions(experts_per_token=k, drop_tokens=False, renormalise=renormalise))
    logits_GSE = torch.tensor([[[0.3, 0.5, 0.2]]]).log()
    index_N, weight_N, count_E, _ = router.choose(logits_GSE, None)
    torch.testing.assert_close(weight_N.sort(descending=True).values, torch.tensor(expected))
    assert count_E.tolist() == ([0, 1, 0] if k == 1 else [1, 1, 0])
