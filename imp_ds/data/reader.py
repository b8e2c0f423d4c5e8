"""What is asked of a reader: the rows of one split of one source, each by its number."""

from typing import Protocol

import numpy as np

from imp_ds.modalities.media import RawSample
from imp_ds.tasks import Source


class Reader(Protocol):
    """The rows of one split of one source, in a fixed order of their own, each to be had at once by its number.

    A reader holds nothing that grows with the rows but what it maps from an index on disk; it can be forked and pickled.
    name: the source as messages and counts call it, for example "images[train]".
    shard_rows: rows of each shard, int64 [S], in the order of the rows. What has no shards is cut into runs of rows.
    class_names: in the order of the labels, or None.
    damage: files that end before they should, each in a sentence; the rows before their ends are there.
    """

    name: str
    source: Source
    shard_rows: np.ndarray
    class_names: list[str] | None
    damage: list[str]

    def __len__(self) -> int: ...

    def key(self, row: int) -> str:
        """A name of the row that stays the same, whatever is done with the others."""

    def read(self, row: int) -> RawSample:
        """All roles of the row. Raises BadSample."""
