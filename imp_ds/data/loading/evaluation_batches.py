"""A whole split in order, without any randomness, for evaluation."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from imp_ds.data.decoding import decode_windows
from imp_ds.data.loading.collation import Collator
from imp_ds.data.reader import Reader
from imp_ds.errors import UserError
from imp_ds.modalities.decoding_settings import DEFAULTS, DecodingSettings
from imp_ds.modalities.media import BadSample
from imp_ds.modalities.media_cache import MediaCache
from imp_ds.modalities.modality import TextNeeds, Wanted
from imp_ds.modalities.views import Views
from imp_ds.tasks import Batch


def evaluation_batches(reader: Reader, collator: Collator, views: Views, *, batch_size: int, rank: int = 0, world: int = 1,
                       name: str = "evaluation", cache: MediaCache | None = None,
                       decoding: DecodingSettings = DEFAULTS, text: TextNeeds = TextNeeds(),
                       report: Callable[[int, int], None] | None = None) -> Iterator[Batch]:  # fmt: skip
    """This rank's rows of the split, in batches of exactly `batch_size`: blocks of rows are dealt to the ranks in turn.

    A long recording is cut into several windows, each an entry of its own; a row that cannot be used has none. So ranks may have
    different numbers of batches, but each has at least one; the last is filled up by repetition. `targets["index"]`, int64 [B],
    is the row; `targets["valid"]`, bool [B], is False for a repetition. `report` is called with the rows read and those of the
    split. Raises UserError when no row of the split can be used.
    """
    wanted = Wanted(has_tokens=collator.has_tokens, settings=decoding, conversation_tokens=collator.conversation_tokens)
    waiting, made = [], False
    for row in _rows_of(len(reader), batch_size, rank, world):
        waiting += [(row, sample) for sample in _windows(reader, row, views, cache, wanted)]
        while len(waiting) >= batch_size:
            yield _batch(partial(collator, text=text), name, views, waiting[:batch_size], batch_size)
            waiting, made = waiting[batch_size:], True
        if report is not None:
            report(row + 1, len(reader))
    if waiting:
        yield _batch(partial(collator, text=text), name, views, waiting, batch_size)
    elif not made:
        batch = _batch(partial(collator, text=text), name, views, _first_usable(reader, views, cache, wanted), batch_size)
        batch.targets["valid"] &= False
        yield batch


def _rows_of(rows: int, block: int, rank: int, world: int) -> Iterator[int]:
    for start in range(rank * block, rows, block * world):
        yield from range(start, min(start + block, rows))


def _windows(reader: Reader, row: int, views: Views, cache: MediaCache | None, wanted: Wanted) -> list[dict]:
    try:
        return decode_windows(reader.read(row), views, cache, wanted)
    except BadSample:
        return []


def _first_usable(reader: Reader, views: Views, cache: MediaCache | None, wanted: Wanted) -> list[tuple[int, dict]]:
    for row in range(len(reader)):
        if found := _windows(reader, row, views, cache, wanted):
            return [(row, found[0])]
    raise UserError(f"{reader.name}: no sample can be used", fix="imp_ds data check RECIPE shows why")


def _batch(collator: Callable, name: str, views: Views, entries: list[tuple[int, dict]], size: int) -> Batch:
    filled = entries + [entries[-1]] * (size - len(entries))
    batch = collator(name, views, [sample for _, sample in filled])
    batch.targets["index"] = torch.tensor([row for row, _ in filled])
    batch.targets["valid"] = torch.arange(size) < len(entries)
    return batch
