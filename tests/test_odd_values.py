"""Every field of every record, with values at the edges: a run that can be planned, or one message.

Here some values of each field; `scripts/try_damage.py fields` gives all of them to all.
"""

import pytest

from helpers.odd_values import VALUES, attempt, fields
from imp_ds.errors import UserError
from imp_ds.modalities.text.view import TextView
from imp_ds.overrides import parse_record
from imp_ds.recipes import get_recipe

EACH = 5  # values of a field


def test_no_field_takes_a_value_that_breaks_the_plan():
    run = get_recipe("digits_debug")
    taken = [
        one
        for place, path in enumerate(fields(run))
        for value in (VALUES[(place * EACH + i) % len(VALUES)] for i in range(EACH))
        for one in attempt(run, path, value)
    ]
    assert len(taken) > 800 and 50 < sum(taken) < len(taken) / 2


@pytest.mark.parametrize(
    "setting, said",
    [
        ("model.vision_patch=[4,0,8]", "at least 1"),
        ("model.num_hidden_layers=1000000000", "10000"),
        ("tasks.0.weight=Infinity", "number"),
        ("tasks.0.source.text=\x1b[31mred", "control characters"),
        ("train.steps=1" + "0" * 400, "beyond 9007199254740992"),
        ("data.root=" + "x" * 100_001, "more than 100000 characters"),
        ("name=" + "x" * 101, "100"),
    ],
)
def test_values_that_are_refused_by_name(setting, said):
    with pytest.raises(UserError, match=said):
        get_recipe("digits_debug").override([setting])


def test_a_truth_value_is_no_number_in_a_file_either():
    """pydantic would take it for 1; --set has always refused it."""
    with pytest.raises(UserError, match="length is true or false"):
        parse_record(TextView, {"length": True}, "my_run.json")
