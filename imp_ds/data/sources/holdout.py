"""A share of a source's training samples as its validation or test split, where it has none of its own.

Which samples are held out hangs on what they show: a hash of the bytes of their media, or else of their captions. So copies of
one picture lie on one side, the split is the same on every machine, and more samples move none of the others.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from imp_ds.data.files.index import IndexWriter, cached_index
from imp_ds.data.order.subset import Subset
from imp_ds.data.sources.rows import RowReader
from imp_ds.data.sources.splits import Wanted
from imp_ds.errors import UserError
from imp_ds.modalities.media import BadSample
from imp_ds.modalities.modality import files_of, texts_of
from imp_ds.tasks import Source

_UNIT = 1 << 30  # a hash is a number below it
_LOOKED_AT = 1 << 20  # bytes of a medium that are hashed, besides its size
_BLOCK = 1024


def held_out(reader: RowReader, wanted: Wanted) -> Subset:
    """The rows of `reader`, those of the split "train", that belong to the split of `wanted`. Raises UserError where none do."""
    source, split = wanted.source, wanted.split
    make = partial(_write, reader, wanted.progress)
    key = f"holdout 2 {wanted.address} {source.model_dump_json()} {stamp_of(reader)}"
    hash_N = cached_index(wanted.storage.file_cache, key, make, of_others=True).columns["hash"][:]
    begin, end = _range(source, split)
    rows = np.flatnonzero((hash_N >= begin * _UNIT) & (hash_N < end * _UNIT))
    if not len(rows):
        raise UserError(
            f"{source.path}: no sample falls into the split {split}",
            got=f"source.holdout = {source.holdout}, {len(reader)} samples", fix="hold out a larger share, or add samples",
        )  # fmt: skip
    ends = np.searchsorted(rows, np.cumsum(reader.shard_rows))
    chosen = Subset(reader, rows, shard_rows=np.diff(ends, prepend=0))
    chosen.name = f"{source.path}[{split}]"
    return chosen


def stamp_of(reader: RowReader) -> str:
    """Another one when the files of rows, or the folders of media, have changed."""
    files = [(file.address, file.stamp) for file in getattr(reader, "files", [])]
    return f"{files} {getattr(reader, 'stamp', None)} {len(reader)} {reader.key(0)} {reader.key(len(reader) - 1)}"


def _range(source: Source, split: str) -> tuple[float, float]:
    """Which part of the hashes is a split's: those that are held out come first, the rest is for training."""
    begin = 0.0
    for name in ("test", "validation"):
        end = begin + source.holdout.get(name, 0.0)
        if name == split:
            return begin, end
        begin = end
    return begin, 1.0


def _write(reader: RowReader, progress: Callable | None, path: Path) -> None:
    """Write the column `hash`, of each row."""
    writer = IndexWriter(path, hash="int32")
    for start in range(0, len(reader), _BLOCK):
        rows = range(start, min(start + _BLOCK, len(reader)))
        writer.append("hash", [_hash(reader, row) for row in rows])
        if progress is not None:
            progress(f"choosing what is held out of {reader.name}", rows.stop, len(reader))
    writer.close()


def _hash(reader: RowReader, row: int) -> int:
    found = hashlib.sha256()
    try:
        sample = reader.read(row)
        media = [file for files in files_of(sample).values() for file in files]
        if media:
            with media[0].open() as file:
                found.update(file.read(_LOOKED_AT))
                found.update(str(file.seek(0, 2)).encode())
        else:
            texts = texts_of(sample) or [reader.key(row)]
            found.update("\n".join(sorted(texts)).encode("utf-8", "surrogatepass"))
    except (BadSample, OSError):  # of no use anyway
        found.update(reader.key(row).encode("utf-8", "surrogatepass"))
    return int.from_bytes(found.digest()[:8], "little") % _UNIT
