"""The balancing bias on a case small enough to work out by hand: rate 0.1, three experts, four tokens of one group.

    token   scores           bias 0   bias -0.1, 0.1, 0.1   bias -0.2, 0, 0.2
    0       0.9, 0.5, 0.1    0        0.8, 0.6, 0.2: 0      0.7, 0.5, 0.3: 0
    1       0.8, 0.5, 0.2    0        0.7, 0.6, 0.3: 0      0.6, 0.5, 0.4: 0
    2       0.7, 0.65, 0.3   0        0.6, 0.75, 0.4: 1     0.5, 0.65, 0.5: 1
    3       0.6, 0.55, 0.5   0        0.5, 0.65, 0.6: 1     0.4, 0.55, 0.7: 2
    chosen                   4, 0, 0  2, 2, 0               2, 1, 1, the mean being 4 / 3

Shapes: T tokens, E experts, K experts of a token.
"""

import pytest
import torch

from imp_ds.moe.routers.registry import build_router
from imp_ds.moe.routers.top_k_balanced import BalancedTopKRouter
from imp_ds.moe.routing import RoutingContext
from imp_ds.train.engine.engine import finish_counts

SCORES_TE = torch.tensor([[0.9, 0.5, 0.1], [0.8, 0.5, 0.2], [0.7, 0.65, 0.3], [0.6, 0.55, 0.5]])


def make_router(k: int = 1, **options) -> BalancedTopKRouter:
    options = {"experts_per_token": k, "drop_tokens": False, "bias_rate": 0.1, **options}
    router = build_router("top_k_balanced", 3, 3, options)
    router.weight.data = torch.eye(3)
    return router


def route(router, valid_T=None, group: int = 4):
    return router(SCORES_TE.logit(), RoutingContext(group, valid_T))


def choices(routing) -> list[dict[int, float]]:
    """For each expert {token: weight}."""
    count = routing.count_E.tolist()
    rows = zip(routing.token_index_N.split(count), routing.weight_N.split(count))
    return [dict(zip(tokens.tolist(), weights.tolist())) for tokens, weights in rows]


def test_the_bias_moves_choices_and_no_weights():
    router = make_router()
    assert choices(route(router)) == [pytest.approx({0: 0.9, 1: 0.8, 2: 0.7, 3: 0.6}), {}, {}]
    assert router.chosen_E.tolist() == [4, 0, 0]
    finish_counts([router], taken=True)
    assert router.raises_E.tolist() == [-1, 1, 1] and router.bias_E.tolist() == pytest.approx([-0.1, 0.1, 0.1])
    assert choices(route(router)) == [pytest.approx({0: 0.9, 1: 0.8}), pytest.approx({2: 0.65, 3: 0.55}), {}]
    finish_counts([router], taken=True)
    assert router.raises_E.tolist() == [-2, 0, 2]
    assert choices(route(router)) == [pytest.approx({0: 0.9, 1: 0.8}), pytest.approx({2: 0.65}), pytest.approx({3: 0.5})]
    finish_counts([router], taken=True)
    assert router.raises_E.tolist() == [-3, 1, 3] and router.chosen_E.tolist() == [0, 0, 0]


def test_two_choices_are_renormalised_without_the_bias():
    router = make_router(2)
    router.raises_E[:] = torch.tensor([-2, 0, 2])
    first, second, third = choices(route(router))
    # 0.7, 0.5, 0.3; 0.6, 0.5, 0.4; 0.5, 0.65, 0.5, where rounding may take either; 0.4, 0.55, 0.7
    assert first[0] == pytest.approx(0.9 / 1.4) and second[0] == pytest.approx(0.5 / 1.4) and 0 not in third
    assert first[1] == pytest.approx(0.8 / 1.3) and second[1] == pytest.approx(0.5 / 1.3)
    assert second[3] == pytest.approx(0.55 / 1.05) and third[3] == pytest.approx(0.5 / 1.05) and 3 not in first


def test_an_even_load_moves_nothing_and_micro_batches_add_up():
    router = make_router()
    router.after_step(torch.tensor([5, 5, 5]))
    assert router.raises_E.tolist() == [0, 0, 0]
    route(router)
    route(router, torch.tensor([True, False, False, True]))  # padding is not counted
    assert router.chosen_E.tolist() == [6, 0, 0]


def test_what_is_dropped_was_chosen_all_the_same():
    router = make_router(drop_tokens=True)  # C = round(4 / 3) = 1 token of each group
    assert route(router).count_E is None and router.chosen_E.tolist() == [4, 0, 0]


def test_only_steps_that_are_taken_count():
    router = make_router()
    with torch.no_grad():
        route(router)
    router.eval()
    route(router)
    assert router.chosen_E.tolist() == [0, 0, 0]
    router.train()
    route(router)
    finish_counts([router], taken=False)
    assert router.chosen_E.tolist() == router.raises_E.tolist() == [0, 0, 0]


def test_no_loss_balances_and_the_chosen_scores_alone_have_gradients():
    router = make_router(2)
    routing = route(router)
    assert routing.report.balance_loss.item() == 0.0
    (routing.weight_N * torch.arange(8)).sum().backward()
    assert router.weight.grad[:2].abs().min() > 0 and not router.weight.grad[2].any()  # expert 2 is nobody's


def test_the_state_is_exact_in_any_type_and_belongs_to_the_weights():
    router = make_router()
    router.raises_E[:] = torch.tensor([100_001, -3, 7])  # 100,001 is no bfloat16
    assert router.bfloat16().raises_E.tolist() == [100_001, -3, 7]
    assert router.state_dict().keys() == {"weight", "raises_E"}
