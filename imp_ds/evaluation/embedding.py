"""Embedding a whole split on all ranks: every rank encodes equally many equally shaped batches, then the rows are joined.

Equal calls on every rank are what expert parallelism and ZeRO 3 need. Rows that only fill a last batch are marked
(`valid`) and left out, so the joined table holds each row of the split once, in its order, whatever the number of ranks.
A row's vector depends on the rows of its routing group if a group holds several examples (`config.group_examples`), and
so on the batch size; with one example in a group it depends on nothing else.

Shapes: B rows of a batch, R rows that one rank encoded, N rows of the split, C width of a common space, E experts.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from imp_ds.parallel.gather import gather_rows
from imp_ds.parallel.groups import on_main
from imp_ds.tasks import Batch


@dataclass
class Embedded:
    """What one pass gave: vectors_NC by modality, and by modality the mean share of each expert, [layer][expert]."""

    vectors: dict[str, torch.Tensor]
    usage: dict[str, list[list[float]]]


def embed_rows(model, batches: Iterable[Batch], routes: list[tuple[str, str]]) -> Embedded:
    """Encode every batch by each route (source, target): `source` is read from the batch and projected towards `target`.

    Each batch has targets "index" (row of the split, int64 [B]) and "valid" (bool [B]). All ranks call this together.
    A UserError that one rank meets in making a batch is raised on all.
    """
    device = next(model.parameters()).device
    vectors, shares = {source: [] for source, _ in routes}, {source: [] for source, _ in routes}
    index, valid = [], []
    batches = iter(batches)
    # a rank that cannot read its batch tells the others, which would wait for it in the next exchange of tokens
    while (batch := on_main(lambda: next(batches, None), "a batch cannot be made", every_rank=True)) is not None:
        batch = batch.to(device)
        index.append(batch.targets["index"])
        valid.append(batch.targets["valid"])
        for source, target in routes:
            encoding = model.encode(source, batch.inputs[source])
            vectors[source].append(model.project(encoding.pooled_BD, source, target))
            shares[source].append([report.usage_E for report in encoding.reports])
    rows_N = _row_order(torch.cat(index), torch.cat(valid))
    joined = {source: gather_rows(torch.cat(parts))[rows_N] for source, parts in vectors.items()}
    return Embedded(joined, {source: _mean_usage(parts) for source, parts in shares.items()})


def _row_order(index_R: torch.Tensor, valid_R: torch.Tensor) -> torch.Tensor:
    """Where row 0, 1, ... of the split lie among the gathered rows, [N]."""
    index, valid = gather_rows(index_R), gather_rows(valid_R)
    place = valid.nonzero().squeeze(1)
    order = index[place].argsort()
    rows = index[place][order]
    assert torch.equal(rows, torch.arange(len(rows), device=rows.device)), "the ranks together did not encode each row once"
    return place[order]


def _mean_usage(shares: list[list[torch.Tensor]]) -> list[list[float]]:
    """Mean over batches and ranks of each layer's usage_E; [] for a dense encoder. Repeated rows count here: they are few."""
    if not shares[0]:
        return []
    mean_1LE = torch.stack([torch.stack([usage_E.float() for usage_E in layers]) for layers in shares]).mean(0, keepdim=True)
    return gather_rows(mean_1LE).mean(0).tolist()


def prompt_batches(tokenizer, prompts: list[str], length: int, *, batch_size: int, rank: int, world: int) -> Iterator[Batch]:
    """Prompts as batches of one shape, dealt to the ranks in turn; the last prompt fills up what is left over."""
    rounds = -(-len(prompts) // (batch_size * world))
    for turn in range(rounds):
        first = (turn * world + rank) * batch_size
        index = torch.arange(first, first + batch_size)
        texts = [prompts[min(i, len(prompts) - 1)] for i in index.tolist()]
        tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        inputs = {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
        targets = {"index": index.clamp(max=len(prompts) - 1), "valid": index < len(prompts)}
        yield Batch("prompts", {"text": inputs}, targets)
