"""Sources: the formats in which users have their samples, each read by row number.

A format is a class in a file of its own (`imp_ds.data.sources.format`); what is asked of a reader stands in
`imp_ds.data.reader`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np

from imp_ds.data.files.storage import Storage, Unreachable
from imp_ds.data.sources.columns.classes import check_templates
from imp_ds.data.sources.columns.found_classes import names_in
from imp_ds.data.sources.format import Format, format_of, register_format
from imp_ds.data.sources.holdout import held_out
from imp_ds.data.sources.rows import RowReader, checked, runs
from imp_ds.data.sources.splits import NoSplit, Wanted, shards
from imp_ds.errors import UserError
from imp_ds.modalities.media import BadSample
from imp_ds.modalities.modality import get_modality, texts_of
from imp_ds.registry import MODALITIES
from imp_ds.tasks import Source

__all__ = [
    "Format", "NoSplit", "RowReader", "Wanted", "captions", "has_split", "labels", "open_reader", "register_format", "runs",
    "shards", "text_roles",
]  # fmt: skip


class ReadSettings(Protocol):
    """What is used of `imp_ds.config.DataSettings`."""

    cache_dir: str | None
    cache_gb: float
    retries: int
    window: int


def open_reader(
    root: str | Path, source: Source, split: str, settings: ReadSettings, progress: Callable | None = None
) -> RowReader:
    """The rows of a split ("train", "validation", "test") of a source below `root`, a folder or an address.

    Indexes that are not there yet are built, which may take long: `progress(stage, done, total)` reports how far it is. Raises
    UserError when there is no such split, it has no rows, the first lacks a column, or neither the first nor the last is usable.
    """
    if not source.roles():
        raise UserError(f"the source {source.path} names no column", allowed=", ".join([*MODALITIES, "label"]))
    storage = Storage(settings.cache_dir, settings.cache_gb, settings.retries)
    wanted = Wanted(storage, str(root), source, split, settings.window, progress)
    with _reached(wanted):
        if not source.holdout or split != "train" and _is_there(wanted):
            return _opened(wanted)
        return held_out(_opened(wanted._replace(split="train")), wanted)


def _opened(wanted: Wanted) -> RowReader:
    """The reader of a split that is there; its classes have names where a column of strings gives them."""
    source = wanted.source
    reader = format_of(source).open_split(wanted)
    if source.label is not None and reader.class_names is None:
        training = wanted._replace(split="train")
        other = wanted.split != "train" and _is_there(training)
        names = names_in(format_of(source).open_split(training) if other else reader, wanted.storage)
        if names is not None:
            reader.name_classes(names)
    check_templates(source, reader.class_names)
    return checked(reader)


def has_split(root: str | Path, source: Source, split: str) -> bool:
    """Whether a source has a split; nothing is read of it. Raises UserError when that cannot be known."""
    wanted = Wanted(Storage(), str(root), source, "train" if split in source.holdout else split)
    return _is_there(wanted)


def _is_there(wanted: Wanted) -> bool:
    try:
        with _reached(wanted):
            format_of(wanted.source).find(wanted)
    except NoSplit:
        return False
    return True


def labels(reader: RowReader) -> np.ndarray:
    """Class index of every row, int64 [rows]; -1 for a row that cannot be read."""
    reader, found = reader.only("label"), np.full(len(reader), -1, dtype=np.int64)
    for row in range(len(reader)):
        try:
            found[row] = reader.read(row)["label"]
        except BadSample:
            pass
    return found


def captions(reader: RowReader) -> Iterator[str]:
    """Every caption of every row that can be read, in the order of the rows; what a tokenizer is trained on."""
    reader = reader.only(*text_roles(reader.source))
    for row in range(len(reader)):
        try:
            yield from texts_of(reader.read(row))
        except BadSample:
            pass


def text_roles(source: Source) -> list[str]:
    """Those of a source's roles that have texts."""
    return [role for role in source.roles() if role in MODALITIES and get_modality(role).has_texts]


@contextmanager
def _reached(wanted: Wanted) -> Iterator[None]:
    try:
        yield
    except Unreachable as error:
        raise UserError(f"{wanted.name} cannot be reached", got=error, fix="see to the network and the credentials") from error
