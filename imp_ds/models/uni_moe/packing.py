"""Several conversations in one row: positions begin anew with each, and a token attends to those of its own conversation alone.

The causal language models of transformers make the block-diagonal mask of `position_ids` that restart, where no attention mask is
given (seen with Llama, Qwen3 and Mistral in 5.23: equal to one by one, to rounding).
"""

import numpy as np


def pack(each: list[dict], rows: int, no_loss: int) -> list[dict]:
    """`rows` rows of conversations, of nearly equal length: the longest comes first, each to the row that is the shortest so far;
    in a row they stand in their given order.

    Args:
        each: `input_ids`, `attention_mask` and `labels` [L], and media [n, ...], of each conversation.
        no_loss: the label of what is not learned, as the first token of a conversation: nothing of its own stands before it.

    The rows have `position_ids` [L] too.
    """
    members, length_R = [[] for _ in range(rows)], [0] * rows
    for place in sorted(range(len(each)), key=lambda place: -len(each[place]["input_ids"])):
        row = length_R.index(min(length_R))
        members[row].append(place)
        length_R[row] += len(each[place]["input_ids"])
    return [_joined([each[place] for place in sorted(row)], no_loss) for row in members]


def _joined(conversations: list[dict], no_loss: int) -> dict:
    restarting = []
    for found in conversations:
        labels = np.array(found["labels"])
        labels[:1] = no_loss
        restarting.append({**found, "labels": labels, "position_ids": np.arange(len(labels))})
    names = dict.fromkeys(name for found in restarting for name in found)
    return {name: np.concatenate([found[name] for found in restarting if name in found]) for name in names}
