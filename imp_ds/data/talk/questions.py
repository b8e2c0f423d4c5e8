"""What is asked of a digit, in several wordings each, and what the answer is.

The same wordings are written and spoken. Half of the digits are even and half are above four, so that yes and no are right
equally often.
"""

from collections.abc import Callable
from typing import NamedTuple

from imp_ds.data.digits.captions import DIRECTIONS, WORDS

NUMBERS = (*WORDS, "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")


class Question(NamedTuple):
    """wordings: about a digit in an image or a video; spoken: about one in audio; answer: of (digit, direction)."""

    wordings: tuple[str, ...]
    spoken: tuple[str, ...]
    answer: Callable[[int, str], str]


def yes_or_no(true: bool) -> str:
    """The answer to a question about a fact."""
    return "yes" if true else "no"


QUESTIONS = {
    "which": Question(
        ("which digit is this", "what digit is it", "name the digit", "which digit do you see"),
        ("which digit is spoken", "what digit is said", "name the spoken digit", "which digit do you hear"),
        lambda digit, _: WORDS[digit],
    ),
    "even": Question(
        ("is it even", "is the digit even", "is this digit even", "is it an even number"),
        ("is it even", "is the spoken digit even", "is this digit even", "is it an even number"),
        lambda digit, _: yes_or_no(digit % 2 == 0),
    ),
    "larger": Question(
        ("is it larger than four", "is it above four", "is it more than four", "is the digit above four"),
        ("is it larger than four", "is it above four", "is it more than four", "is the spoken digit above four"),
        lambda digit, _: yes_or_no(digit > 4),
    ),
    "next": Question(
        ("what comes next", "what is one more", "add one to it", "which number follows"),
        ("what comes next", "what is one more", "add one to it", "which number follows"),
        lambda digit, _: NUMBERS[digit + 1],
    ),
    "direction": Question(
        ("which way does it move", "where does it go", "which way does it go", "where is it moving"),
        (),
        lambda _, direction: direction,
    ),
}
IMAGE_QUESTIONS = ("which", "even", "larger", "next")
VIDEO_QUESTIONS = ("which", "even", "larger", "direction")
TRANSCRIBE = ("write down what is said", "which words do you hear", "repeat the words", "what does the voice say")
SEVERAL = ("which digits are spoken", "name the digits in order", "which digits do you hear", "write down the digits")
SUM = ("what is the sum of both", "what do both digits make", "add the two digits", "what is their sum")
AGREE = ("is it the same digit", "do both digits agree", "are the two digits equal", "is the spoken digit the written one")


def video_facts(label: int) -> tuple[int, str]:
    """(digit, direction) of a video's label."""
    return label // len(DIRECTIONS), DIRECTIONS[label % len(DIRECTIONS)]
