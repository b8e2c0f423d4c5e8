"""Retrieval: recall at k of the whole split against the whole split.

Each row has one text, the first of its captions, or all of them (Evaluation.captions): then each caption is a query and a
candidate of its own, and a row has been found where any of its captions is among the k best, as is usual for COCO and Flickr30k.
Small corpora repeat captions, so a candidate counts as correct when its caption is, letter for letter, one of the query's: recall
at k is the share of queries with a correct candidate among the k best. A wrong candidate with the same score as the best correct
one counts as better, and so does one whose score is not a number.

Shapes: Q queries, N candidates or rows, T captions of all rows, A captions of a row, P distinct ones, C width of a common space.
"""

from collections.abc import Iterator

import torch

from imp_ds.evaluation.metric import RETRIEVAL, Metric, Shown

RECALLS = (1, 5, 10)
_CHUNK_SCORES = 1 << 24


def caption_groups(captions: list[str]) -> torch.Tensor:
    """A number for each caption, int64 [N]; equal captions share it."""
    numbers = {}
    return torch.tensor([numbers.setdefault(caption, len(numbers)) for caption in captions])


def recall(query_QC: torch.Tensor, candidate_NC: torch.Tensor, group_Q: torch.Tensor, group_N: torch.Tensor) -> dict[int, float]:
    """Recall at each of RECALLS, in 0..1. A candidate is correct when its group is the query's, or where one has several, [Q, A],
    filled up with -1, when they share one; every query has a correct one.

    Exact, in pieces: never more than 16 million scores at once.
    """
    rows = max(1, _CHUNK_SCORES // len(candidate_NC))
    better = []
    for query, group in zip(query_QC.split(rows), group_Q.split(rows)):
        scores = query @ candidate_NC.T
        correct = _share_a_group(group, group_N)
        best = scores.masked_fill(~correct, float("-inf")).amax(1, keepdim=True)
        better.append((~(scores < best) & ~correct).sum(1))
    better_Q = torch.cat(better)
    return {k: (better_Q < k).double().mean().item() for k in RECALLS}


def _share_a_group(group_Q: torch.Tensor, group_N: torch.Tensor) -> torch.Tensor:
    """bool [Q, N]; of each side one group or several, of which -1 is none."""
    several_QA, several_NA = group_Q.view(len(group_Q), -1), group_N.view(len(group_N), -1)
    shared_QN = torch.zeros(len(group_Q), len(group_N), dtype=torch.bool, device=group_Q.device)
    for own_Q in several_QA.unbind(1):
        for other_N in several_NA.unbind(1):
            shared_QN |= (own_Q[:, None] == other_N[None, :]) & (own_Q >= 0)[:, None]
    return shared_QN


def both_directions(
    name: str, media_NC: torch.Tensor, text_NC: torch.Tensor, captions: list[str], target: str = "text"
) -> Iterator[Metric]:
    """`retrieval/{name}/{name}_to_text/R@k` and `retrieval/{name}/text_to_{name}/R@k` of rows that belong together. `target`:
    what it is, if not a text, that belongs to the media."""
    group_N = caption_groups(captions).to(media_NC.device)
    yield from _directions(name, (media_NC, group_N), (text_NC, group_N), target)


def all_captions(name: str, media_NC: torch.Tensor, text_PC: torch.Tensor, numbers: list[list[int]]) -> Iterator[Metric]:
    """The same metrics where each row has several captions: `text_PC` has the vectors of the distinct ones, `numbers` which of
    them a row has. Media are found by each caption, and found of media is any of theirs."""
    most, device = max(map(len, numbers)), media_NC.device
    group_NA = torch.tensor([[*own, *[-1] * (most - len(own))] for own in numbers], device=device)
    group_T = torch.tensor([number for own in numbers for number in own], device=device)
    yield from _directions(name, (media_NC, group_NA), (text_PC[group_T], group_T), "text")


def _directions(name: str, media: tuple[torch.Tensor, ...], text: tuple[torch.Tensor, ...], target: str) -> Iterator[Metric]:
    """media and text: the vectors and their groups."""
    directions = {f"{name}_to_{target}": (media, text), f"{target}_to_{name}": (text, media)}
    for direction, ((query, group_Q), (candidate, group_N)) in directions.items():
        for k, value in recall(query, candidate, group_Q, group_N).items():
            shown = Shown("retrieval R@1", panel=RETRIEVAL) if k == 1 else None
            yield Metric(f"retrieval/{name}/{direction}/R@{k}", value, "share", "higher", shown)
