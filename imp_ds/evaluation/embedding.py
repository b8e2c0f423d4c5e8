"""Embedding a whole split on all ranks: every rank encodes equally many equally shaped batches, then the rows are joined.

Equal calls on every rank are what expert parallelism and ZeRO 3 need: a rank that is through repeats its last batch until all
are. Entries that only fill a batch are marked (`valid`) and left out, so the joined table holds each usable row of the split
once, in its order, whatever the number of ranks. A row with several entries (the windows of a long recording) has the mean of
their vectors, made a unit vector again.
Outside of training each example routes alone, so a row's vector depends on no other row, on no batch size and on no padding.

Shapes: B entries of a batch, R entries that one rank encoded, N rows that were encoded, C width of a common space, E experts.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from imp_ds.moe.routing import RouterReport
from imp_ds.parallel.gather import gather_rows
from imp_ds.parallel.groups import all_agree, on_main
from imp_ds.tasks import Batch


@dataclass
class Embedded:
    """What one pass gave: the rows that were encoded, int64 [N], in ascending order; vectors_NC by modality; and by modality the
    mean share of each expert, [layer][expert]."""

    rows_N: torch.Tensor
    vectors: dict[str, torch.Tensor]
    usage: dict[str, list[list[float]]]


def embed_by(
    embed: Callable[[Batch], Iterable[tuple[str, torch.Tensor, list[RouterReport]]]],
    batches: Iterable[Batch],
    device: torch.device,
    unit: bool = True,
) -> Embedded:
    """`embed` gives, for each modality that it reads of a batch, its name, its vectors and the reports of the routers.

    Each batch has targets "index" (row of the split, int64 [B]) and "valid" (bool [B]). All ranks call this together.
    unit: whether the mean of a row's several vectors is made a unit vector again; False for what is no vector, as probabilities.
    A UserError that one rank meets in making a batch is raised on all.
    """
    vectors, shares, index, valid = defaultdict(list), defaultdict(list), [], []
    for batch in in_step(iter(batches)):
        batch = batch.to(device)
        index.append(batch.targets["index"])
        valid.append(batch.targets["valid"])
        for source, vectors_BC, reports in embed(batch):
            vectors[source].append(vectors_BC)
            shares[source].append([report.usage_E for report in reports])
    index, valid = gather_rows(torch.cat(index)), gather_rows(torch.cat(valid))
    rows_N, place = index[valid].unique(return_inverse=True)
    joined = {m: _mean_of_rows(gather_rows(torch.cat(parts))[valid], place, len(rows_N), unit) for m, parts in vectors.items()}
    return Embedded(rows_N.cpu(), joined, {source: _mean_usage(parts) for source, parts in shares.items()})


def in_step(batches: Iterator[Batch]) -> Iterator[Batch]:
    """This rank's batches, and its last one again, marked as not valid, until every rank has had all of its own."""
    last = None
    while True:
        # a rank that cannot read its batch reports it to the others, which would wait for it in the next exchange of tokens
        batch = on_main(lambda: next(batches, None), "a batch cannot be made", every_rank=True)
        if all_agree(batch is None):
            return
        if batch is None:
            batch = Batch(last.task, last.inputs, last.targets | {"valid": torch.zeros_like(last.targets["valid"])})
        last = batch
        yield batch


def _mean_of_rows(vectors_RC: torch.Tensor, place_R: torch.Tensor, rows: int, unit: bool) -> torch.Tensor:
    """The mean of each row's vectors, [N, C]; where there are several, of unit length again if `unit`."""
    sum_NC = vectors_RC.new_zeros(rows, vectors_RC.shape[1]).index_add_(0, place_R, vectors_RC)
    entries_N1 = place_R.bincount(minlength=rows).unsqueeze(1)
    return torch.where(entries_N1 > 1, F.normalize(sum_NC, dim=-1) if unit else sum_NC / entries_N1, sum_NC)


def mean_vector(vectors_WD: torch.Tensor, width: int) -> torch.Tensor:
    """The vector [D] of an item that has several, of windows or prompts: their mean as a unit vector in each block of `width`
    numbers, so that it ranks as the mean of each pair's vectors does; then of length 1. Of none, zeros."""
    if len(vectors_WD) == 1:
        return vectors_WD[0]
    mean_D = vectors_WD.sum(0)
    if len(mean_D) % width == 0:
        mean_D = F.normalize(mean_D.view(-1, width), dim=-1).flatten()
    return F.normalize(mean_D, dim=-1)


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
