"""The rows of a batch: a conversation in each, or several, padded on the right.

In a row of several, positions begin anew with each, and a token attends to those of its own conversation alone: the causal
language models of transformers make a block-diagonal mask of `position_ids` that restart, where no attention mask is given.

Shapes: R rows, L tokens, n media of a row.
"""

import numpy as np

from imp_ds.models.uni_moe.chunked_loss import NO_LOSS
from imp_ds.models.uni_moe.towers import INPUTS

MEDIA_INPUTS = {kind: (*names, f"{kind}_features") for kind, names in INPUTS.items()}


def pack(each: list[dict], rows: int) -> list[dict]:
    """`rows` rows of conversations, of nearly equal length: the longest comes first, each to the row that is the shortest so far;
    in a row they stand in their given order.

    Args:
        each: `input_ids`, `attention_mask` and `labels` [L], and media [n, ...], of each conversation.

    The rows have `position_ids` [L] too. Nothing is learned at the first token of a conversation, before which nothing of its own
    stands.
    """
    members, length_R = [[] for _ in range(rows)], [0] * rows
    for place in sorted(range(len(each)), key=lambda place: -len(each[place]["input_ids"])):
        row = length_R.index(min(length_R))
        members[row].append(place)
        length_R[row] += len(each[place]["input_ids"])
    return [_joined([each[place] for place in sorted(row)]) for row in members]


def _joined(conversations: list[dict]) -> dict:
    restarting = []
    for found in conversations:
        labels = np.array(found["labels"])
        labels[:1] = NO_LOSS
        restarting.append({**found, "labels": labels, "position_ids": np.arange(len(labels))})
    names = dict.fromkeys(name for found in restarting for name in found)
    return {name: np.concatenate([found[name] for found in restarting if name in found]) for name in names}


def padded(rows: list[dict], pad_token_id: int) -> dict[str, np.ndarray]:
    """Rows as arrays: what they have by token, int64 [R, L]; media [R, n, ...], padded to the most of one row, with their number
    `{kind}_count` [R]. Kinds of media that no row has are left out."""
    fill = {"input_ids": pad_token_id, "attention_mask": 0, "labels": NO_LOSS, "position_ids": 0}
    most, found = max(len(row["input_ids"]) for row in rows), {}
    for name in (name for name in fill if name in rows[0]):
        found[name] = np.full((len(rows), most), fill[name], np.int64)
        for place, row in enumerate(rows):
            found[name][place, : len(row[name])] = row[name]
    for kind, names in MEDIA_INPUTS.items():
        counts_R = np.array([len(next((row[name] for name in names if name in row), ())) for row in rows], np.int64)
        if counts_R.any():
            found |= {name: _media(name, rows, counts_R) for name in names if any(name in row for row in rows)}
            found[f"{kind}_count"] = counts_R
    return found


def _media(name: str, rows: list[dict], counts_R: np.ndarray) -> np.ndarray:
    first = next(row[name] for row in rows if name in row)
    found = np.zeros((len(rows), counts_R.max(), *first.shape[1:]), first.dtype)
    for place, row in enumerate(rows):
        if name in row:
            found[place, : counts_R[place]] = row[name]
    return found
