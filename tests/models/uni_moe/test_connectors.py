"""Connectors: how many tokens they make, pooling by hand, queries that differ and learn."""

import pytest
import torch

from imp_ds.errors import UserError
from imp_ds.models.initialization import initialize_seeded
from imp_ds.models.uni_moe.connectors import build_connector

QUERIES = [dict(kind="qformer", queries=6, depth=2, heads=2), dict(kind="decoder", queries=6, depth=2, heads=2)]


def made(grid=None, **settings):
    connector = build_connector(16, 24, grid, **settings)
    initialize_seeded(connector, 0, 0.02)
    return connector.eval()


@pytest.mark.parametrize(
    "settings, tokens",
    [
        (dict(kind="linear"), 16), (dict(kind="mlp2x_gelu", pool=2), 4), (dict(kind="mlp2x_gelu", pool=[4, 1]), 4),
        *[(settings, 6) for settings in QUERIES],
    ],
)  # fmt: skip
def test_tokens_and_width(settings, tokens):
    assert made(**settings)(torch.randn(3, 16, 16)).shape == (3, tokens, 24)


def test_pooling_averages_neighbours_on_the_grid():
    """Tokens 0..7 on a grid of 2 x 4, in runs of 1 x 2: (0 + 1) / 2, (2 + 3) / 2, and so on."""
    connector = made([2, 4], kind="linear", pool=[1, 2])
    x_NLS = torch.arange(8.0)[None, :, None].expand(1, 8, 16)
    expected = connector.projection(torch.tensor([0.5, 2.5, 4.5, 6.5])[None, :, None].expand(1, 4, 16))
    torch.testing.assert_close(connector(x_NLS), expected)


def test_a_pool_that_does_not_divide_the_grid_is_refused():
    with pytest.raises(UserError, match="does not divide"):
        made([2, 4], kind="linear", pool=3)(torch.randn(1, 8, 16))


def test_an_option_of_another_kind_is_refused():
    with pytest.raises(UserError, match="no such option"):
        build_connector(16, 24, kind="linear", queries=4)


@pytest.mark.parametrize("settings", QUERIES, ids=lambda settings: settings["kind"])
def test_queries_give_outputs_of_full_rank_and_all_learn(settings):
    connector = made(**settings)
    states = connector(torch.randn(1, 16, 16))[0]
    assert torch.linalg.matrix_rank(states - states.mean(0), rtol=1e-3) == 5  # six outputs, no two alike
    states.square().sum().backward()
    gradient = connector.queries.grad
    assert (gradient.norm(dim=1) > 0).all() and torch.linalg.matrix_rank(gradient, rtol=1e-4) > 1


def test_queries_of_a_decoder_see_those_before_them_alone():
    connector = made(**QUERIES[1])
    x_NLS = torch.randn(1, 16, 16)
    before = connector(x_NLS)
    with torch.no_grad():
        connector.queries[4] += torch.arange(16.0)
    changed = (connector(x_NLS) - before).abs().amax(-1)[0] > 1e-6
    assert changed.tolist() == [False] * 4 + [True] * 2
