"""What is read of a run, and how seeds are summed up; expected numbers by hand."""

import math

import pytest

from imp_ds.commands.comparison.measure import MORE, Measure, Spread, spread, spreads
from imp_ds.commands.comparison.measures import between_tasks
from imp_ds.commands.comparison.report import cell, table


def test_interference_is_the_mean_off_the_diagonal_by_kind_of_layer():
    weights = {
        "imp.blocks.0.feed_forward.down.weight": {"matrix": [[1.0, 0.2], [-0.4, 1.0]]},  # mean -0.1
        "imp.blocks.1.feed_forward.down.experts.w": {"matrix": [[1.0, 0.5], [0.1, 1.0]]},  # mean 0.3
        "imp.blocks.2.feed_forward.down.weight": {"matrix": [[1.0, 0.6], [0.4, 1.0]]},  # mean 0.5
    }
    found = between_tasks(weights, [1, 3])
    assert found == {"interference/with_experts": pytest.approx(0.3), "interference/shared": pytest.approx(0.2)}
    assert between_tasks(weights, []) == {"interference/shared": pytest.approx((-0.1 + 0.3 + 0.5) / 3)}


def test_a_number_that_json_could_not_say_is_not_passed_over():
    weights = {"imp.blocks.0.feed_forward.down.weight": {"matrix": [[1.0, None], [0.0, 1.0]]}}
    assert math.isnan(between_tasks(weights, [])["interference/shared"])


def test_spread_is_that_of_a_sample():
    # deviations from 4: -2, 0, 2; their squares sum to 8, over n - 1 = 2
    assert spread([2.0, 4.0, 6.0]) == Spread(4.0, 2.0)
    assert spread([3.0]) == Spread(3.0, None)


def test_a_name_that_one_seed_lacks_is_not_summed_up():
    assert spreads({"dense": [{"a": 1.0, "b": 2.0}, {"a": 3.0}]}) == {"dense": {"a": Spread(2.0, math.sqrt(2))}}


def test_the_table_has_a_row_for_each_router_and_a_dash_for_what_is_not_there():
    measures = [Measure("top1", "images, top 1", "%", 100, 1, MORE), Measure("size", "parameters", "M", 1e-6, 2)]
    found = {
        "dense": {"top1": Spread(0.9312, 0.0041), "size": Spread(1_234_567, 0.0)},
        "token": {"top1": Spread(0.5, None)},
    }
    assert table(measures, found, "router") == [
        "| router | images, top 1, % \u2191 | parameters, M |",
        "| --- | ---: | ---: |",
        "| dense | 93.1 ± 0.4 | 1.23 |",
        "| token | 50.0 | - |",
    ]
    assert cell(measures[0], None) == "-"
