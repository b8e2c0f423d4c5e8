"""Beam search against the best of all texts, against greedy search, and by hand.

Shapes: B examples, K beginnings, L words so far, V words of the vocabulary.
"""

from itertools import product

import pytest
import torch

from imp_ds.errors import UserError
from imp_ds.models.imp.generation.beam_search import beam_search

END, VOCABULARY, LONGEST = 1, 4, 4


def table(seed: int) -> dict[tuple[int, ...], torch.Tensor]:
    """Log-probabilities of the next word after every beginning, [V]."""
    draw = torch.Generator().manual_seed(seed)
    beginnings = [words for length in range(LONGEST) for words in product(range(VOCABULARY), repeat=length)]
    return {words: (2 * torch.randn(VOCABULARY, generator=draw)).log_softmax(0) for words in beginnings}


TABLES = [table(seed) for seed in range(6)]


def next_tokens(ids_BKL: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.stack([known[tuple(words)] for words in rows]) for known, rows in zip(TABLES, ids_BKL.tolist())])


def score(known, words: tuple[int, ...], penalty: float) -> float:
    return sum(known[words[:place]][word].item() for place, word in enumerate(words)) / len(words) ** penalty


def all_texts() -> list[tuple[int, ...]]:
    """Those that end, and those that are cut: 1 + 3 + 9 + 27 and 81."""
    inner = [w for w in range(VOCABULARY) if w != END]
    ended = [(*words, END) for length in range(LONGEST) for words in product(inner, repeat=length)]
    return ended + list(product(inner, repeat=LONGEST))


def search(size: int, penalty: float, **changes):
    options = dict(size=size, longest=LONGEST, end_id=END, length_penalty=penalty)
    return beam_search(next_tokens, len(TABLES), **{**options, **changes})


def text(words: list[int]) -> tuple[int, ...]:
    return tuple(words[: words.index(END) + 1] if END in words else words)


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0])
def test_a_beam_that_holds_every_text_finds_the_best_of_all(penalty):
    assert len(all_texts()) == 121
    ids_BL, score_B = search(200, penalty)
    for known, words, found in zip(TABLES, ids_BL.tolist(), score_B.tolist()):
        best = max(all_texts(), key=lambda words: score(known, words, penalty))
        assert text(words) == best
        assert found == pytest.approx(score(known, best, penalty), rel=1e-5)
        assert set(words[len(best) :]) <= {END}


def test_the_tables_tell_penalties_apart():
    """Or the test above would say nothing of them."""
    best = {p: [text(words) for words in search(200, p)[0].tolist()] for p in (0.0, 0.7, 1.0)}
    assert best[0.0] != best[0.7] and sum(map(len, best[0.0])) < sum(map(len, best[1.0]))


def test_a_beam_of_one_is_greedy():
    ids_BL, score_B = search(1, 1.0)
    for known, words, found in zip(TABLES, ids_BL.tolist(), score_B.tolist()):
        greedy = ()
        while len(greedy) < LONGEST and END not in greedy:
            greedy += (known[greedy].argmax().item(),)
        assert text(words) == greedy and found == pytest.approx(score(known, greedy, 1.0), rel=1e-5)


def test_a_wider_beam_is_never_worse_here_and_mostly_better_than_greedy():
    one, three, all_ = (search(size, 0.0)[1] for size in (1, 3, 200))
    assert (three >= one - 1e-6).all() and (all_ >= three - 1e-6).all() and (all_ > one + 1e-6).any()


def test_by_hand():
    """Greedy takes 2 (0.6) and then the end (0.4): 0.24. A beam of two finds 3 (0.4) and the end (0.9): 0.36."""
    p = {(): [0, 0, 0.6, 0.4], (2,): [0, 0.4, 0.3, 0.3], (3,): [0, 0.9, 0.1, 0]}
    known = lambda rows_BKL: torch.tensor([[p.get(tuple(words), [0, 1, 0, 0]) for words in rows_BKL[0].tolist()]]).log()  # noqa: E731
    for size, words, best in ((1, [2, END], 0.24), (2, [3, END], 0.36)):
        found, score_B = beam_search(known, 1, size=size, longest=5, end_id=END, length_penalty=0.0)
        assert found.tolist() == [words] and score_B.exp().item() == pytest.approx(best, rel=1e-5)


def test_it_stops_when_nothing_can_be_better_unless_the_others_are_not_through():
    asked = []

    def certain(ids_BKL):
        asked.append(ids_BKL.shape[2])
        log_p_V = torch.tensor([0.01, 0.97, 0.01, 0.01]).log()
        return log_p_V.expand(*ids_BKL.shape[:2], VOCABULARY)

    options = dict(size=2, longest=LONGEST, end_id=END, length_penalty=0.0)
    assert beam_search(certain, 1, **options)[0].tolist() == [[END]] and asked == [0]
    asked.clear()
    ids_BL, _ = beam_search(certain, 1, **options, agree=lambda through: False)
    assert ids_BL.tolist() == [[END] * LONGEST] and asked == [0, 1, 2, 3]


def test_what_is_refused():
    with pytest.raises(UserError, match="nothing to search"):
        search(0, 1.0)
    with pytest.raises(UserError, match="nothing to search"):
        search(1, 1.0, longest=0)
    with pytest.raises(UserError, match="length penalty is negative"):
        search(1, -1.0)
