"""Which of the samples that are left out are named: one of each reason at least, in their order."""

from imp_ds.data.inspect.check import Findings, first_examples
from imp_ds.tasks import Rejection


def rejected(*reasons: str) -> list[Rejection]:
    return [Rejection("talk[train]", str(number), reason, "") for number, reason in enumerate(reasons)]


def keys(rejections: list[Rejection]) -> list[str]:
    return [rejection.key for rejection in rejections]


def test_each_reason_has_an_example_however_few_are_shown():
    left_out = rejected("missing file", "missing file", "missing file", "unknown role", "too long", "missing file")
    assert keys(first_examples(left_out, 4)) == ["0", "1", "3", "4"]  # three reasons, and the second missing file
    assert keys(first_examples(left_out, 2)) == ["0", "3", "4"]
    assert first_examples(left_out, 9) == left_out


def test_what_is_added_up_keeps_one_of_each_reason():
    one, other = Findings(examples=rejected(*["missing file"] * 10)), Findings(examples=rejected("too long"))
    one.merge(other)
    assert keys(one.examples) == [*map(str, range(9)), "0"] and one.examples[-1].reason == "too long"
