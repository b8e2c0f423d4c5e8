"""Beam search: the most probable text of a model that gives the probability of each next token.

Of each example the `size` best beginnings are kept. One that has ended stays as it is, and is compared with the others by its
score, sum(log p) / words ** length_penalty (the penalty of Wu et al., 2016, arXiv 1609.08144, section 7, as Hugging Face has it).
A beam of one is greedy search; one that holds every text finds the best of all.

Shapes: B examples, K beginnings that are kept of each, L words so far, V words of the vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from imp_ds.errors import UserError


class Beams(NamedTuple):
    """What is kept: words, int64 [B, K, L], followed by end words where a text has ended; the sum of their log-probabilities,
    float [B, K]; how many words count, the end with them, int64 [B, K]; and whether the text has ended, bool [B, K]."""

    ids_BKL: torch.Tensor
    sum_BK: torch.Tensor
    length_BK: torch.Tensor
    ended_BK: torch.Tensor

    def score_BK(self, length_penalty: float) -> torch.Tensor:
        return self.sum_BK / self.length_BK**length_penalty


def beam_search(
    next_tokens: Callable[[torch.Tensor], torch.Tensor], batch: int, *, size: int, longest: int, end_id: int,
    length_penalty: float = 1.0, device: torch.device | str = "cpu", agree: Callable[[bool], bool] = bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The best text of each example, int64 [B, L], L <= longest, filled up with end words, and its score, float [B].

    Args:
        next_tokens: beginnings, int64 [B, K, L] -> log-probabilities of the next token, float [B, K, V]. K is 1 at first, and
            never more than `size`.
        longest: words of a text, its end with them; who has not ended by then is taken without an end.
        end_id: the word that ends a text.
        length_penalty: 0 prefers short texts; the larger, the longer.
        agree: whether all who search together are through, from whether this one is: ranks that compute next_tokens together take
            equally many steps.

    Raises UserError for a beam without room, texts without words, or a negative penalty.
    """
    _check(size, longest, length_penalty)
    zeros = lambda *shape, dtype: torch.zeros(batch, *shape, dtype=dtype, device=device)  # noqa: E731
    beams = Beams(
        zeros(1, 0, dtype=torch.int64), zeros(1, dtype=torch.float32), zeros(1, dtype=torch.int64), zeros(1, dtype=torch.bool)
    )
    for _ in range(longest):
        beams = _grown(beams, next_tokens(beams.ids_BKL), size, end_id, length_penalty)
        if agree(_finished(beams, longest, length_penalty)):
            break
    score_B, best_B = beams.score_BK(length_penalty).max(1)
    return beams.ids_BKL[torch.arange(batch, device=device), best_B], score_B


def _grown(beams: Beams, log_p_BKV: torch.Tensor, size: int, end_id: int, length_penalty: float) -> Beams:
    """The best beginnings that are one word longer. A text that has ended is followed by its end, at no cost."""
    vocabulary = log_p_BKV.shape[2]
    is_end_V = torch.arange(vocabulary, device=log_p_BKV.device) == end_id
    after_end_V = torch.where(is_end_V, 0.0, -torch.inf)
    sum_BKV = beams.sum_BK.unsqueeze(2) + torch.where(beams.ended_BK.unsqueeze(2), after_end_V, log_p_BKV.float())
    length_BK = beams.length_BK + ~beams.ended_BK
    score_BN = (sum_BKV / length_BK.unsqueeze(2) ** length_penalty).flatten(1)
    chosen_BK = score_BN.topk(min(size, score_BN.shape[1]), dim=1).indices
    beam_BK, id_BK = chosen_BK // vocabulary, chosen_BK % vocabulary
    before_BKL = beams.ids_BKL.take_along_dim(beam_BK.unsqueeze(2), dim=1)
    return Beams(
        torch.cat([before_BKL, id_BK.unsqueeze(2)], dim=2), sum_BKV.flatten(1).gather(1, chosen_BK),
        length_BK.gather(1, beam_BK), beams.ended_BK.gather(1, beam_BK) | (id_BK == end_id),
    )  # fmt: skip


def _finished(beams: Beams, longest: int, length_penalty: float) -> bool:
    """Whether of every example a text has ended that none of the others can beat: log-probabilities are not positive, so a
    beginning's score is at most what its sum so far is worth at the full length."""
    ended_BK = beams.score_BK(length_penalty).where(beams.ended_BK, -torch.inf)
    hoped_BK = (beams.sum_BK / longest**length_penalty).where(~beams.ended_BK, -torch.inf)
    return bool((ended_BK.amax(1) >= hoped_BK.amax(1)).all())


def _check(size: int, longest: int, length_penalty: float) -> None:
    if size < 1 or longest < 1:
        raise UserError("nothing to search", got=f"a beam of {size}, texts of {longest} words", allowed="1 or more of both")
    if length_penalty < 0:
        raise UserError("the length penalty is negative", got=length_penalty, allowed="0, which prefers short texts, or more")
