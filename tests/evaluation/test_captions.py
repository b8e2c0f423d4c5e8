"""BLEU-4 and CIDEr-D against published examples, the scorers of COCO, and hand counts."""

import math

import pytest

from imp_ds.errors import UserError
from imp_ds.evaluation.captions import bleu4, cider, words

# tokens that Stanford's PTBTokenizer gives with the punctuation of pycocoevalcap 1.2 left out
CUT = {
    "A man's dog doesn't like the T-shirt.": "a man 's dog does n't like the t-shirt",
    "a dog. a cat. The U.S. flag at 5:30 p.m.": "a dog a cat the u.s. flag at 5:30 p.m.",
    "\"hello\" he said - and 'left' -- now...": "hello he said and left now",
    "I'm we've they'd can't won't cannot": "i 'm we 've they 'd ca n't wo n't can not",
    "the dogs' bowl & a plate/cup, 1,000 people #1 50%": "the dogs bowl & a plate/cup 1,000 people # 1 50 %",
    "caf\u00e9 \u2013 \u201cquoted\u201d it\u2019s \u2026": "caf\u00e9 quoted it 's",
    "a 12-year-old boy's mother-in-law, 5'10\" at 3.5": "a 12-year-old boy 's mother-in-law 5 10 at 3.5",
    "it 's a dog , o'clock": "it 's a dog o'clock",
}

# candidate, references
MADE = [
    ("A man's dog runs on the beach.", ["A man's dog is running on the beach.", "The dog of a man runs along a beach!",
                                        "a brown dog, at the beach"]),
    ("two children play with a red t-shirt", ["Two children are playing with a red T-shirt.", "two kids play with a shirt"]),
    ("a picture of the digit two", ["the digit two, written by hand", "a hand-written 2", "a picture of a two",
                                    "a picture of the digit two."]),
    ("the man doesn't ride a horse at 5:30 p.m.", ["A man who doesn't ride his horse at 5:30 p.m.",
                                                   "At 5:30 p.m. nobody rides a horse."]),
    ("a cat", ["A cat sleeps on a couch; it isn't alone.", "a cat and a dog sleep"]),
    ("a a a a dog and a plane", ["an airplane in the sky -- very high", "a plane"]),
]  # fmt: skip


def columns(rows) -> tuple[list[str], list[list[str]]]:
    candidates, references = zip(*rows)
    return list(candidates), list(references)


@pytest.mark.parametrize("caption, expected", CUT.items())
def test_words_are_those_of_the_treebank_without_punctuation(caption, expected):
    assert " ".join(words(caption)) == expected


def test_the_scorers_of_coco_give_the_same():
    # pycocoevalcap 1.2: PTBTokenizer, then Bleu(4) and Cider()
    assert bleu4(*columns(MADE)) == pytest.approx(0.45090999, abs=1e-8)
    assert cider(*columns(MADE)) == pytest.approx(2.71277018, abs=1e-8)


def test_the_example_of_nltk():
    # the documentation of nltk.translate.bleu_score: corpus_bleu 0.5920..., sentence_bleu of the first 0.5045...
    first = (
        "It is a guide to action which ensures that the military always obeys the commands of the party",
        [
            "It is a guide to action that ensures that the military will forever heed Party commands",
            "It is the guiding principle which guarantees the military forces always being under the command of the Party",
            "It is the practical guide for the army always to heed the directions of the party",
        ],
    )
    second = (
        "he read the book because he was interested in world history",
        ["he was interested in world history because he read the book"],
    )
    assert int(1e4 * bleu4(*columns([first, second]))) == 5920
    assert int(1e4 * bleu4(*columns([first]))) == 5045


def test_the_example_of_aac_metrics():
    # the README of aac-metrics: cider_d 0.9614
    rows = [
        ("a man is speaking", ["a man speaks.", "someone speaks.",
                               "a man is speaking while a bird is chirping in the background"]),
        ("rain falls", ["rain is falling hard on a surface"]),
    ]  # fmt: skip
    assert cider(*columns(rows)) == pytest.approx(0.9614, abs=5e-5)


def test_bleu_by_hand():
    # of 5 words 4 stand in the reference of 6, of 4 pairs 3, of 3 triples 2, of 2 quadruples 1; too short by exp(1 - 6/5)
    expected = math.exp(1 - 6 / 5) * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4)
    assert bleu4(["one two three four nine"], [["one two three four five six"]]) == pytest.approx(expected)
    # the nearer length counts: 5 beside 6 and 4 are as near, the shorter is taken
    assert bleu4(["one two three four nine"], [["one two three four five six", "seven"]]) == pytest.approx(expected)
    assert bleu4(["one two three four nine"], [["one two three four five six", "a b c d"]]) == pytest.approx(
        expected / math.exp(1 - 6 / 5)
    )


def test_cider_by_hand():
    # each n-gram stands in the references of one row of two, so all weigh ln 2. Row 0: the words and the pair of "red cat" are
    # found in full, it has no longer n-grams: 10 * (1 + 1 + 0 + 0) / 4. Row 1: nothing is found.
    assert cider(["red cat", "a"], [["red cat"], ["blue dog"]]) == pytest.approx(5 / 2)
    # "cat cat cat" has one word thrice, counted once as in the reference: cosine 1 * 1 / (3 * sqrt 2); two pairs beside one
    expected = 10 * (1 / (3 * math.sqrt(2))) / 4 * math.exp(-1 / (2 * 36))
    assert cider(["cat cat cat", "a"], [["red cat"], ["blue dog"]]) == pytest.approx(expected / 2)
    # what stands in all rows tells nothing
    assert cider(["red cat"], [["red cat"]]) == 0


def test_perfect_and_empty_captions():
    same = ["the red cat sleeps all day", "a blue dog runs on grass"]
    assert bleu4(same, [[caption, "x"] for caption in same]) == pytest.approx(1)
    assert cider(same, [[caption] for caption in same]) == pytest.approx(10)
    assert bleu4(["", ""], [[caption] for caption in same]) == cider(["", ""], [[caption] for caption in same]) == 0


@pytest.mark.parametrize("measure", [bleu4, cider])
@pytest.mark.parametrize("candidates, references, word", [
    ([], [], "0 captions"),
    (["a"], [["a"], ["b"]], "1 captions, references of 2 rows"),
    (["a", "b"], [["a"], ["...", ""]], "row 1 has no reference"),
])  # fmt: skip
def test_what_cannot_be_compared_is_refused(measure, candidates, references, word):
    with pytest.raises(UserError, match=word):
        measure(candidates, references)
