"""Captions against references, as the evaluation of COCO captions compares them (Chen et al., 2015, arXiv 1504.00325, section 3).

A row of captions has one candidate and any number of references. All are in lower case, cut into words as the Penn Treebank
has them ("a man's dog doesn't" is a man 's dog does n't), and stripped of punctuation, before anything is counted. Where the
tokenizer of that evaluation, Stanford's, knows the words of English better ("Dr." keeps its dot), this one does not: it has no
dictionary.
"""

import math
import re
from collections import Counter

from imp_ds.errors import UserError

_ORDERS = 4  # n-grams of 1 to 4 words
_SIGMA = 6.0  # of CIDEr-D's penalty on a difference of lengths, in bigrams
# a place inside a word where the Treebank cuts: does|n't, man|'s, can|not
_CUT = re.compile(r"(?<=\w)(?=(?:n't|'(?:s|m|d|ll|re|ve))(?!\w))|(?<=\bcan)(?=not\b)")
_WORD = re.compile(
    r"n't(?!\w)|'(?:s|m|d|ll|re|ve)(?!\w)"  # what was cut off
    r"|(?:[^\W\d_]\.){2,}(?!\w)"  # u.s.
    r"|\w+(?:(?:[-/.]|(?<=[^\W\d])'(?=[^\W\d])|(?<=\d)[,:](?=\d))\w+)*"  # word, t-shirt, and/or, o'clock, 3.5, 1,000, 5:30
    r"|[^\w\s]"  # any other sign
)
_PUNCTUATION = frozenset("\"'`.,?!:;-()[]{}\u2013\u2014\u2018\u201c\u201d\u2026")


def words(caption: str) -> list[str]:
    """The words of a caption that are counted."""
    text = _CUT.sub(" ", caption.lower().replace("\u2019", "'"))
    return [word for word in _WORD.findall(text) if word not in _PUNCTUATION]


def bleu4(candidates: list[str], references: list[list[str]]) -> float:
    """BLEU of n-grams up to 4 over the whole corpus, in 0..1, without smoothing (Papineni et al., 2002, section 2.3).

    A candidate's length is compared with that of the reference nearest to it. Raises UserError for rows that do not match.
    """
    from sacrebleu.metrics import BLEU

    candidates, references = _cut(candidates, references)
    most = max(map(len, references))
    # sacrebleu wants the first reference of each row, then the second, with None where a row has no more
    streams = [[" ".join(row[i]) if i < len(row) else None for row in references] for i in range(most)]
    metric = BLEU(tokenize="none", smooth_method="none", force=True)
    return metric.corpus_score([" ".join(candidate) for candidate in candidates], streams).score / 100


def cider(candidates: list[str], references: list[list[str]]) -> float:
    """CIDEr-D, the mean over the rows, in 0..10 (Vedantam et al., 2015, arXiv 1411.5726, sections 3 and 7; what is reported
    of COCO as "CIDEr", often times 100).

    An n-gram counts the less, the more rows have it in their references: of one row alone every score is 0. Raises UserError for
    rows that do not match.
    """
    candidates, references = _cut(candidates, references)
    counted = [[_ngrams(reference) for reference in row] for row in references]
    rows_with = Counter(gram for row in counted for gram in set().union(*row))
    rarity = lambda gram: math.log(len(counted) / max(1, rows_with[gram]))  # noqa: E731
    scores = []
    for candidate, row in zip(candidates, counted):
        own = _Weighted(_ngrams(candidate), rarity)
        scores.append(10 * sum(own.likeness(_Weighted(reference, rarity)) for reference in row) / len(row))
    return math.fsum(scores) / len(scores)


class _Weighted:
    """A caption as tf-idf vectors, one for each length of n-grams."""

    def __init__(self, counts: Counter, rarity):
        self.vectors = [{} for _ in range(_ORDERS)]
        for gram, count in counts.items():
            self.vectors[len(gram) - 1][gram] = count * rarity(gram)
        self.norms = [math.hypot(*vector.values()) for vector in self.vectors]
        self.bigrams = sum(count for gram, count in counts.items() if len(gram) == 2)

    def likeness(self, reference: "_Weighted") -> float:
        """Mean cosine over the lengths, in 0..1: what the caption has more of than the reference is not counted, and a difference
        in length is punished."""
        cosines = []
        for own, other, norm in zip(self.vectors, reference.vectors, map(math.prod, zip(self.norms, reference.norms))):
            shared = sum(min(weight, other[gram]) * other[gram] for gram, weight in own.items() if gram in other)
            cosines.append(shared / norm if norm else 0.0)
        penalty = math.exp(-((self.bigrams - reference.bigrams) ** 2) / (2 * _SIGMA**2))
        return penalty * sum(cosines) / _ORDERS


def _ngrams(caption: list[str]) -> Counter:
    """How often each run of 1 to 4 words stands in a caption."""
    return Counter(tuple(caption[i : i + n]) for n in range(1, _ORDERS + 1) for i in range(len(caption) - n + 1))


def _cut(candidates: list[str], references: list[list[str]]) -> tuple[list[list[str]], list[list[list[str]]]]:
    """All captions as words. A reference without a word is no reference."""
    if len(candidates) != len(references) or not candidates:
        raise UserError(
            "captions cannot be compared", got=f"{len(candidates)} captions, references of {len(references)} rows",
            allowed="one caption for each row, and at least one row",
        )  # fmt: skip
    found = [[cut for reference in row if (cut := words(reference))] for row in references]
    for number, row in enumerate(found):
        if not row:
            raise UserError(f"row {number} has no reference with a word in it", got=references[number], allowed="one or more")
    return [words(candidate) for candidate in candidates], found
