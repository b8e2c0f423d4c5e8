"""Answers against references: the share that is right to the letter, but for what does not matter.

As in SQuAD (Rajpurkar et al., 2016, section 6.1): case, punctuation, the articles a, an and the, and spaces do not count.
"""

import re
import string

from imp_ds.errors import UserError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(answer: str) -> str:
    """What of an answer is compared: "The U.S.!" is "us"."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_WITHOUT_PUNCTUATION)).split())


def exact_match(answers: list[str], references: list[list[str]]) -> float:
    """Share of the answers that equal one of their references, in 0..1. Raises UserError for rows that do not match."""
    if len(answers) != len(references) or not answers:
        raise UserError(
            "answers cannot be compared", got=f"{len(answers)} answers, references of {len(references)} questions",
            allowed="one answer for each question, and at least one question",
        )  # fmt: skip
    right = [normalised(answer) in map(normalised, row) for answer, row in zip(answers, references)]
    return sum(right) / len(right)
