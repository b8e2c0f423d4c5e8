"""Some rows of a reader."""

import copy
from collections.abc import Sequence

import numpy as np

from imp_ds.data.samples import RawSample, Reader


class Subset:
    """A Reader (`imp_ds.data.samples`) over some rows of another one, under the same name and keys.

    Args:
        reader: the whole.
        rows: numbers of its rows, in the order in which they are wanted.
    """

    def __init__(self, reader: Reader, rows: Sequence[int]):
        self.reader, self.rows = reader, rows
        self.name, self.source, self.class_names = reader.name, reader.source, reader.class_names
        self.shard_rows = np.array([len(rows)])

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, row: int) -> str:
        return self.reader.key(int(self.rows[row]))

    def read(self, row: int) -> RawSample:
        return self.reader.read(int(self.rows[row]))

    def only(self, *roles: str) -> "Subset":
        """The same rows, of which no more than these roles are read."""
        subset = copy.copy(self)
        subset.reader = self.reader.only(*roles)
        return subset


def spread_over(reader: Reader, most: int) -> Subset:
    """`most` rows at equal distances, the first and the last among them; all, when there are no more."""
    rows = range(len(reader)) if most >= len(reader) else np.linspace(0, len(reader) - 1, most).round().astype(np.int64)
    return Subset(reader, rows)
