"""Exact match against the rules of SQuAD, applied by hand."""

import pytest

from imp_ds.errors import UserError
from imp_ds.evaluation.captions import exact_match, normalised


@pytest.mark.parametrize("answer, expected", [
    ("The U.S.!", "us"),
    ("  an  Apple,\ta pear ", "apple pear"),
    ("theatre another anthem", "theatre another anthem"),  # articles are whole words
    ("3.5", "35"),
    ("the", ""),
])  # fmt: skip
def test_normalised_by_hand(answer, expected):
    assert normalised(answer) == expected


def test_exact_match_by_hand():
    # right by its second reference; right; wrong; right
    answers = ["Two.", "the red dog", "a cat", "left-handed"]
    references = [["three", "two"], ["Red dog"], ["cats"], ["lefthanded"]]
    assert exact_match(answers, references) == 0.75


@pytest.mark.parametrize("answers, references", [([], []), (["a"], [["a"], ["b"]])])
def test_rows_that_do_not_match_are_refused(answers, references):
    with pytest.raises(UserError, match="cannot be compared"):
        exact_match(answers, references)
