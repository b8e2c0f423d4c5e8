"""Some rows of a reader."""

import copy
import math
from collections.abc import Sequence

import numpy as np

from imp_ds.data.reader import Reader
from imp_ds.errors import UserError
from imp_ds.modalities.media import RawSample

_FRACTION = 9  # what a random generator is for: the first word of its seed (`imp_ds.data.order.order` has others)


class Subset:
    """A Reader (`imp_ds.data.reader`) over some rows of another one, under the same name and keys.

    Args:
        reader: the whole.
        rows: numbers of its rows, in the order in which they are wanted.
        shard_rows: how many of them lie in each shard; None: they count as one.
    """

    def __init__(self, reader: Reader, rows: Sequence[int], shard_rows: np.ndarray | None = None):
        self.reader, self.rows = reader, rows
        self.name, self.source, self.class_names, self.damage = reader.name, reader.source, reader.class_names, reader.damage
        self.shard_rows = np.array([len(rows)]) if shard_rows is None else shard_rows

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


def class_fraction(reader: Reader, label_N: np.ndarray, fraction: float, seed: int, names: list[str] | None = None) -> Subset:
    """`fraction` of the rows of each class, to the nearest integer, in their order: a pure function of the seed, and a
    larger fraction holds all rows of a smaller one.

    Args:
        label_N: class of each row, int64; -1 for a row that cannot be read, which is left out.
        fraction: above 0, at most 1.
        names: of the classes, for the message, where the reader does not know them.

    Raises UserError for a fraction that leaves a class without rows.
    """
    classes, count_K = np.unique(label_N[label_N >= 0], return_counts=True)
    kept_K = np.floor(fraction * count_K + 0.5).astype(np.int64)
    if (kept_K == 0).any():
        label, count = int(classes[kept_K == 0][0]), int(count_K[kept_K == 0][0])
        names = names or reader.class_names
        raise _empty(reader.name, f"{label} ({names[label]})" if names else str(label), count, fraction, int(count_K.min()))
    chosen = []
    for label, kept in zip(classes.tolist(), kept_K.tolist()):
        rows = np.flatnonzero(label_N == label)
        chosen.append(np.random.default_rng([_FRACTION, seed, label]).permutation(rows)[:kept])
    return Subset(reader, np.sort(np.concatenate(chosen)))


def _empty(name: str, label: str, count: int, fraction: float, fewest: int) -> UserError:
    enough = math.ceil(0.5 / fewest * 1e6) / 1e6  # six digits after the point, upwards
    return UserError(
        f"{name}: the fraction leaves class {label} without samples",
        got=f"{fraction:g} of {count} samples", allowed=f"{enough:g} to 1, which leaves each class at least one",
        fix=f"--fraction {enough:g}, or --set tasks.NAME.source.fraction={enough:g}",
    )  # fmt: skip
