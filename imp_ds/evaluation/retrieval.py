"""Retrieval: recall at k of the whole split against the whole split.

Each row has one text, the first of its captions. Small corpora repeat captions, so a candidate counts as correct when its
caption is, letter for letter, the query's own: recall at k is the share of queries with a correct candidate among the k
best. A wrong candidate with the same score as the best correct one counts as better, and so does one whose score is not
a number.

Shapes: Q queries, N candidates, C width of a common space.
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
    """Recall at each of RECALLS, in 0..1. A candidate is correct when its group is the query's; every query has one.

    Exact, in pieces: never more than 16 million scores at once.
    """
    rows = max(1, _CHUNK_SCORES // len(candidate_NC))
    better = []
    for query, group in zip(query_QC.split(rows), group_Q.split(rows)):
        scores = query @ candidate_NC.T
        correct = group[:, None] == group_N[None, :]
        best = scores.masked_fill(~correct, float("-inf")).amax(1, keepdim=True)
        better.append((~(scores < best) & ~correct).sum(1))
    better_Q = torch.cat(better)
    return {k: (better_Q < k).double().mean().item() for k in RECALLS}


def both_directions(
    name: str, media_NC: torch.Tensor, text_NC: torch.Tensor, captions: list[str], target: str = "text"
) -> Iterator[Metric]:
    """`retrieval/{name}/{name}_to_text/R@k` and `retrieval/{name}/text_to_{name}/R@k` of rows that belong together. `target`:
    what it is, if not a text, that belongs to the media."""
    group_N = caption_groups(captions).to(media_NC.device)
    directions = {f"{name}_to_{target}": (media_NC, text_NC), f"{target}_to_{name}": (text_NC, media_NC)}
    for direction, (query, candidate) in directions.items():
        for k, value in recall(query, candidate, group_N, group_N).items():
            shown = Shown("retrieval R@1", panel=RETRIEVAL) if k == 1 else None
            yield Metric(f"retrieval/{name}/{direction}/R@{k}", value, "share", "higher", shown)
