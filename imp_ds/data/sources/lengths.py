"""How long each sample of a source is, roughly: an index that is made once, by which samples of like length come together."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from imp_ds.data.files.file_cache import FileCache
from imp_ds.data.files.index import Index, IndexWriter, cached_index
from imp_ds.data.order.subset import Subset
from imp_ds.data.reader import Reader
from imp_ds.data.sources.holdout import stamp_of
from imp_ds.modalities.media import BadSample
from imp_ds.modalities.modality import get_modality

_BLOCK = 1024


class SampleLengths:
    """row -> length of its sample of a modality, in tokens or what stands for them.

    Args:
        index: with the columns `Modality.measures`.
        modality: its name; part: what the processor preprocesses it with.
        rows: of the index, those that are rows here; None: all.
    """

    def __init__(self, index: Index, modality: str, part, rows=None):
        self._columns = [index.columns[name] for name in get_modality(modality).measures]
        self._length, self._rows = partial(get_modality(modality).length, part=part), rows

    def __getitem__(self, row: int) -> int:
        row = row if self._rows is None else int(self._rows[row])
        return self._length([int(column[row]) for column in self._columns])


def open_lengths(reader: Reader, modality: str, part, cache: FileCache, progress: Callable | None = None) -> SampleLengths:
    """The lengths of a reader's rows; the index is made where it is not in the cache. Raises UserError for one that cannot be
    written."""
    rows = None
    while isinstance(reader, Subset):
        rows = reader.rows if rows is None else [reader.rows[int(row)] for row in rows]
        reader = reader.reader
    key = f"lengths {modality} {reader.source.model_dump_json()} {stamp_of(reader)}"
    index = cached_index(cache, key, partial(_write, reader, modality, progress), of_others=True)
    return SampleLengths(index, modality, part, rows)


def _write(reader: Reader, modality: str, progress: Callable | None, path: Path) -> None:
    names, only = get_modality(modality).measures, reader.only(modality)
    writer = IndexWriter(path, **dict.fromkeys(names, "int32"))
    for start in range(0, len(only), _BLOCK):
        rows = range(start, min(start + _BLOCK, len(only)))
        for name, values in zip(names, zip(*(_measured(only, row, modality) for row in rows)), strict=True):
            writer.append(name, values)
        if progress is not None:
            progress(f"measuring {reader.name}", rows.stop, len(only))
    writer.close()


def _measured(reader: Reader, row: int, modality: str) -> list[int]:
    try:
        return get_modality(modality).measure(reader.read(row)[modality])
    except BadSample:  # another one will take its place
        return [0] * len(get_modality(modality).measures)
