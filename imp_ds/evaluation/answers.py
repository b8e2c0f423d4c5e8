"""Answers against references: the share that is right to the letter, the share that names the right option, and the words that a
transcript has wrong."""

import re
import string

from imp_ds.errors import UserError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
_OPTION = re.compile(r"^\s*(?:\(([A-Z])\)|([A-Z])[).:])\s*(\S.*?)\s*$")  # a line "(A) dog", "A) dog", "A. dog" or "A: dog"
_LETTER_FIRST = re.compile(r"^\W*([A-Za-z])\W*$|^\s*\(?([A-Z])[).:]")  # "b", "(B).", "B) the dog"
_LETTER_NAMED = re.compile(r"\b(?i:answer|option|choice)(?:\s+is)?\W*\(?([A-Z])\b(?!')")  # "the answer is (B)"
_LETTER_BRACKETED = re.compile(r"\(([A-Z])\)")


def normalised(answer: str) -> str:
    """What of an answer is compared: "The U.S.!" is "us". As in SQuAD (Rajpurkar et al., 2016, section 6.1) case, punctuation,
    the articles a, an and the, and spaces do not count."""
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


def word_error_rate(transcripts: list[str], references: list[str]) -> float:
    """Words that were left out, put in or replaced, in all, by the words of all references: 0 is perfect, and more than 1 is
    possible. Case and punctuation do not count. Raises UserError for rows that do not match, and references without a word."""
    if len(transcripts) != len(references) or not references:
        raise UserError(
            "transcripts cannot be compared", got=f"{len(transcripts)} transcripts, {len(references)} references",
            allowed="one transcript for each reference, and at least one",
        )  # fmt: skip
    pairs = [(_words(transcript), _words(reference)) for transcript, reference in zip(transcripts, references)]
    if not (total := sum(len(reference) for _, reference in pairs)):
        raise UserError("transcripts cannot be compared", got="references without a word", allowed="words")
    return sum(_edits(*pair) for pair in pairs) / total


def _words(text: str) -> list[str]:
    return text.lower().translate(_WITHOUT_PUNCTUATION).split()


def _edits(found: list[str], wanted: list[str]) -> int:
    """The fewest words to leave out, put in or replace that make the one of the other (Levenshtein)."""
    row = list(range(len(wanted) + 1))
    for place, word in enumerate(found, start=1):
        before, row[0] = row[0], place
        for other in range(1, len(row)):
            cost = before + (word != wanted[other - 1])
            before, row[other] = row[other], min(cost, row[other] + 1, row[other - 1] + 1)
    return row[-1]


def options_of(question: str) -> list[str]:
    """The texts of a question's options, which stand in lines of their own from A on: "A. dog", "B) cat", "(C) horse"."""
    found = []
    for line in question.splitlines():
        match = _OPTION.match(line)
        if match and (match[1] or match[2]) == string.ascii_uppercase[len(found) % 26]:
            found.append(match[3])
    return found


def chosen_option(answer: str, options: list[str]) -> int | None:
    """Which option an answer names, from 0; None: none, or more than one.

    In this order: the answer is an option's text; it is a letter, or begins with one ("B", "b", "(B) cat"); it says "the answer
    is B"; one letter in brackets stands in it; the text of one option does.
    """
    texts, given = [normalised(option) for option in options], normalised(answer)
    if texts.count(given) == 1:
        return texts.index(given)
    if len(set(_LETTER_BRACKETED.findall(answer))) > 1:
        return None
    for pattern in (_LETTER_FIRST, _LETTER_NAMED, _LETTER_BRACKETED):
        letters = {next(filter(None, match.groups())).upper() for match in pattern.finditer(answer)}
        if letters:
            place = string.ascii_uppercase.index(letters.pop())
            return place if not letters and place < len(options) else None
    within = [place for place, text in enumerate(texts) if text and re.search(rf"\b{re.escape(text)}\b", given)]
    return within[0] if len(within) == 1 else None


def multiple_choice(questions: list[str], answers: list[str], references: list[str]) -> float:
    """Share of the answers that name the option which the reference names, by letter or text, in 0..1. Raises UserError for rows
    that do not match, and a question without options or whose reference is none of them."""
    if not len(questions) == len(answers) == len(references) or not questions:
        raise UserError(
            "answers cannot be compared", got=f"{len(answers)} answers to {len(questions)} questions",
            allowed="one answer for each question, and at least one question",
        )  # fmt: skip
    right = 0
    for question, answer, reference in zip(questions, answers, references):
        options = options_of(question)
        if (wanted := chosen_option(reference, options)) is None:
            what = f"the reference {reference!r} names none of the {len(options)} options of: {question[:200]}"
            fix = 'options in lines of their own, "A. dog", "B. cat", and as reference a letter or an option\'s text'
            raise UserError("this is no multiple choice", got=what, fix=fix)
        right += chosen_option(answer, options) == wanted
    return right / len(questions)
