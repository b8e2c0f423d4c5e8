"""The conversations without media: arithmetic in words, and the questions about media asked of descriptions instead.

All that can be asked is listed once, shuffled, and cut into the splits: a question of the test split stands word for word in no
other, but most of its facts do in other words.
"""

from collections.abc import Iterator
from itertools import product

import numpy as np

from imp_ds.data.digits.captions import WORDS
from imp_ds.data.talk.conversations import conversation, digits_in_words, written
from imp_ds.data.talk.questions import (
    AGREE,
    IMAGE_QUESTIONS,
    NUMBERS,
    QUESTIONS,
    SEVERAL,
    SUM,
    VIDEO_QUESTIONS,
    video_facts,
    yes_or_no,
)

SHARES = {"validation": 0.1, "test": 0.1}
_ADD = (
    "what is {} plus {}",
    "{} plus {}",
    "add {} and {}",
    "what is the sum of {} and {}",
    "what do {} and {} make",
    "how much is {} and {}",
)
_SUBTRACT = ("what is {} minus {}", "{} minus {}", "what is left of {} without {}", "how much is {} less {}")
_MORE = ("is {} larger than {}", "is {} more than {}", "is {} above {}", "is {} greater than {}", "is {} higher than {}")
_LESS = ("is {} smaller than {}", "is {} less than {}", "is {} below {}", "is {} under {}", "is {} lower than {}")
_LARGER = ("which is larger, {} or {}", "what is more, {} or {}", "name the larger of {} and {}")
_EVEN = (
    "is {} even",
    "is the number {} even",
    "is {} an even number",
    "is the digit {} even",
    "is {} divisible by two",
    "is {} a multiple of two",
)
_NEXT = (
    "what comes next after {}",
    "what is one more than {}",
    "add one to {}",
    "which number follows {}",
    "count on from {}",
    "what comes after {}",
    "name the number after {}",
)
_BEFORE = (
    "what comes before {}",
    "what is one less than {}",
    "which number precedes {}",
    "take one from {}",
    "count back from {}",
    "name the number before {}",
    "what comes just before {}",
)
_IMAGES = ("the picture shows the digit {}.", "here is a written {}.", "somebody wrote the number {}.")
_SPEECH = ("the voice says {}.", "the spoken digit is {}.", "somebody says the word {}.")
_VIDEOS = ("the video shows the digit {} moving {}.", "the digit {} moves {}.")
_BOTH = ("the written digit is {}. the spoken digit is {}.", "the picture shows {}. the voice says {}.")
_DIGITS = range(len(WORDS))


def arithmetic() -> Iterator[dict]:
    """Sums, differences, comparisons, parity, what comes before and after."""
    pairs = list(product(_DIGITS, _DIGITS))
    unequal = [(a, b) for a, b in pairs if a != b]
    yield from _asked("sum", _ADD, pairs, lambda a, b: NUMBERS[a + b])
    yield from _asked("difference", _SUBTRACT, [(a, b) for a, b in pairs if a >= b], lambda a, b: NUMBERS[a - b])
    yield from _asked("more", _MORE, unequal, lambda a, b: yes_or_no(a > b))
    yield from _asked("less", _LESS, unequal, lambda a, b: yes_or_no(a < b))
    yield from _asked("larger", _LARGER, unequal, lambda a, b: NUMBERS[max(a, b)])
    numbers = [(a,) for a in range(len(NUMBERS))]
    yield from _asked("even", _EVEN, numbers, lambda a: yes_or_no(a % 2 == 0))
    yield from _asked("next", _NEXT, numbers[:-1], lambda a: NUMBERS[a + 1])
    yield from _asked("before", _BEFORE, numbers[1:], lambda a: NUMBERS[a - 1])


def descriptions() -> Iterator[dict]:
    """What the tasks with media ask, of texts that say what is in the media."""
    for kind, digit in product(IMAGE_QUESTIONS, _DIGITS):
        question = QUESTIONS[kind]
        for places, texts in ((_IMAGES, question.wordings), (_SPEECH, question.spoken)):
            yield from _described(kind, [place.format(WORDS[digit]) for place in places], texts, question.answer(digit, ""))
    for kind, label in product(VIDEO_QUESTIONS, range(40)):
        digit, direction = video_facts(label)
        facts = [place.format(WORDS[digit], direction) for place in _VIDEOS]
        yield from _described(kind, facts, QUESTIONS[kind].wordings, QUESTIONS[kind].answer(digit, direction))
    for digit, spoken in product(_DIGITS, _DIGITS):
        facts = [place.format(WORDS[digit], WORDS[spoken]) for place in _BOTH]
        yield from _described("sum", facts, SUM, NUMBERS[digit + spoken])
        if (spoken - digit) % 10 in (0, 1 + (digit * 7) % 9):  # one other digit for each, so that both answers come equally often
            yield from _described("agree", facts, AGREE, yes_or_no(digit == spoken))
    for digits in product(_DIGITS, repeat=3):
        text = SEVERAL[sum(digits) % len(SEVERAL)]
        yield from _described("several", [f"the voice says {digits_in_words(digits)}."], [text], digits_in_words(digits))


def split_rows(rows: Iterator[dict], rng: np.random.Generator) -> dict[str, list[dict]]:
    """The rows in random order, cut into the splits by `SHARES`."""
    rows = list(rows)
    rows = [rows[place] for place in rng.permutation(len(rows))]
    validation, test = (round(len(rows) * SHARES[split]) for split in ("validation", "test"))
    return {"train": rows[validation + test :], "validation": rows[:validation], "test": rows[validation : validation + test]}


def _asked(kind: str, texts, operands, answer) -> Iterator[dict]:
    for text, numbers in product(texts, operands):
        yield conversation(kind, (written(text.format(*(NUMBERS[number] for number in numbers))), answer(*numbers)))


def _described(kind: str, facts: list[str], texts, answer: str) -> Iterator[dict]:
    for fact, text in product(facts, texts):
        yield conversation(kind, (f"{fact}\n{written(text)}", answer))
