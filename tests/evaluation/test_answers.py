"""Exact match against the rules of SQuAD, word errors and chosen options, all by hand."""

import pytest

from imp_ds.errors import UserError
from imp_ds.evaluation.answers import chosen_option, exact_match, multiple_choice, normalised, options_of, word_error_rate


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


@pytest.mark.parametrize("transcript, reference, errors, words", [
    ("which digit is this", "Which digit is this?", 0, 4),
    ("which digit this", "which digit is this", 1, 4),  # is left out
    ("which digit is is this", "which digit is this", 1, 4),  # one word too many
    ("what digit is that", "which digit is this", 2, 4),  # two replaced
    ("is which digit this", "which digit is this", 2, 4),  # one put in, one left out
    ("", "which digit is this", 4, 4),
    ("a b c d e f", "x y", 6, 2),  # two replaced, four put in: three times as many errors as words
])  # fmt: skip
def test_word_errors_by_hand(transcript, reference, errors, words):
    assert word_error_rate([transcript], [reference]) == errors / words


def test_word_errors_are_counted_over_the_whole_split():
    # 1 of 4 words and 0 of 1: one in five, not the mean of 1/4 and 0
    assert word_error_rate(["which digit this", "seven"], ["which digit is this", "seven"]) == 1 / 5
    with pytest.raises(UserError, match="without a word"):
        word_error_rate(["a"], ["?!"])
    with pytest.raises(UserError, match="cannot be compared"):
        word_error_rate([], [])


QUESTION = """What is in the picture?
A. a dog
B. two cats
C) the hot dog
(D) nothing
Answer with the letter."""


def test_options_are_the_lines_from_a_on():
    assert options_of(QUESTION) == ["a dog", "two cats", "the hot dog", "nothing"]
    assert options_of("I. Kant wrote it.\nA man") == []


@pytest.mark.parametrize("answer, chosen", [
    ("B", 1), ("b", 1), ("(B)", 1), ("B.", 1), ("C) the hot dog", 2), ("D: none of it", 3),
    ("The answer is (B).", 1), ("Answer: C", 2), ("I think it is option B", 1),
    ("two cats", 1), ("Two cats!", 1), ("There are two cats in it.", 1), ("There is nothing in it.", 3),
    ("A dog.", 0),  # the text of A, not only its letter
    ("I see a hot dog", None),  # "dog" is A, and "hot dog" is C
    ("(A) or (B)", None), ("E", None), ("a horse", None), ("", None),
])  # fmt: skip
def test_the_option_that_an_answer_names(answer, chosen):
    assert chosen_option(answer, options_of(QUESTION)) == chosen


def test_multiple_choice_by_hand():
    # right by letter; right by text; wrong
    assert multiple_choice([QUESTION] * 3, ["B", "nothing", "A"], ["two cats", "D", "C"]) == pytest.approx(2 / 3)
    with pytest.raises(UserError, match="no multiple choice"):
        multiple_choice(["Which digit is it?"], ["A"], ["seven"])
