"""What is embedded: the items of a folder's files, or of the sources of a recipe, in a fixed order.

A listing has rows, each with its items: the one of a file, or all modalities of a sample. What a row holds is read when its items
are asked for.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from imp_ds.commands.predict import files_below
from imp_ds.config import RunConfig
from imp_ds.data.sources import has_split, open_reader
from imp_ds.data.sources.columns.embedded import suffix_of
from imp_ds.errors import UserError
from imp_ds.modalities.media import BadSample, Media
from imp_ds.modalities.messages.spellings import SUFFIXES
from imp_ds.modalities.modality import TEXT
from imp_ds.modalities.text.captions import captions
from imp_ds.modalities.views import Views
from imp_ds.registry import MODALITIES

MODALITY = {"image": "vision", "video": "vision", "audio": "audio", TEXT: TEXT}  # of a kind of file
_TEXT_SUFFIX = "txt"
_MOST_TEXT = 1 << 20  # bytes of a file of text


class Item(NamedTuple):
    """One thing with one vector.

    id: the same whatever is done with the others; kind: image, video, audio, text, or the name of another modality.
    raw: as a reader gives it; view: how it is seen, None: as the model's own tasks see its kind.
    path, text, task, split: what is written beside the vector.
    """

    id: str
    kind: str
    raw: object
    path: str | None = None
    text: str | None = None
    task: str | None = None
    split: str | None = None
    view: object | None = None

    @property
    def modality(self) -> str:
        return MODALITY.get(self.kind, self.kind)


def kind_of(medium: Media) -> str | None:
    """image, video, audio or text, by the ending of a file's name, or else by how the file begins; None: another kind. Raises
    BadSample for a file that cannot be opened."""
    ending = medium.suffix[1:]
    if ending == _TEXT_SUFFIX:
        return TEXT
    kinds = [kind for kind, endings in SUFFIXES.items() if ending in endings]
    if not kinds:
        with medium.open() as file:
            begins = suffix_of(file.read(16))[1:]
        kinds = [kind for kind, endings in SUFFIXES.items() if begins in endings]
    return kinds[0] if kinds else None


def item_of(medium: Media, name: str, kind: str) -> Item:
    """The item of a file. Raises BadSample for a text that cannot be read."""
    path = None if medium.path is None else str(medium.path)
    if kind != TEXT:
        return Item(name, kind, medium, path)
    with medium.open() as file:
        content = file.read(_MOST_TEXT + 1)
    if len(content) > _MOST_TEXT:
        raise BadSample("too large", f"{medium.name}: more than {_MOST_TEXT} bytes of text")
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise BadSample("unreadable text", f"{medium.name}: {error}") from None
    return Item(name, TEXT, captions(text, medium.name), path, text)


class FolderItems:
    """The media files and texts below a folder, in sorted order; hidden files and files of other kinds are passed over, which
    `passed_over` counts. Raises UserError where none is left."""

    def __init__(self, folder: Path):
        self.folder, self._files, self.passed_over = folder.resolve(), [], 0
        for file in files_below([self.folder]):
            kind = self._kind(file)
            self.passed_over += kind is None
            if kind is not None:
                self._files.append((file, kind))
        if not self._files:
            allowed = f"files that end in .{_TEXT_SUFFIX}, .{', .'.join(sorted(set().union(*SUFFIXES.values())))}"
            raise UserError("there is no file to embed", got=f"{folder}: {self.passed_over} other files", allowed=allowed)

    def _kind(self, file: str) -> str | None:
        try:
            return kind_of(Media(file, path=Path(file)))
        except BadSample:
            return None

    def __len__(self) -> int:
        return len(self._files)

    def facts(self) -> dict:
        """What the items follow from: other items have other facts."""
        described = []
        for file, _ in self._files:
            try:
                found = os.stat(file)
                described.append([self._name(file), found.st_size, found.st_mtime_ns])
            except OSError:
                described.append([self._name(file), None, None])
        return {"folder": str(self.folder), "files": described}

    def name(self, row: int) -> str:
        return self._name(self._files[row][0])

    def items(self, row: int) -> Iterator[Item]:
        """Raises BadSample."""
        file, kind = self._files[row]
        yield item_of(Media(file, path=Path(file)), self._name(file), kind)

    def _name(self, file: str) -> str:
        return os.path.relpath(file, self.folder)


class RecipeItems:
    """All samples of a split of a run's sources, each column once, whichever tasks read it; every caption is an item of its own.

    modalities: that the model compares; others are not read. Raises UserError where no source has the split or one of these.
    """

    def __init__(self, run: RunConfig, split: str, modalities: list[str]):
        self.run, self.split, self.passed_over = run, split, 0
        self._parts, self._first, seen = [], [], set()
        for task in run.tasks:
            for source in task.sources:
                own = [name for name in task.views.names() if name in modalities and name in source.roles()]
                new = [name for name in own if _column(source, name) not in seen]
                if new and has_split(run.data.root, source, split):
                    seen |= {_column(source, name) for name in new}
                    reader = open_reader(run.data.root, source, split, run.data).only(*new)
                    self._first.append(len(self))
                    self._parts.append((task.name, task.views, reader, new))
        if not self._parts:
            raise UserError(
                "there is no sample to embed", got=f"the {split} split of the recipe's sources below {run.data.root}",
                allowed=f"a split with {', '.join(modalities)}", fix="--split train, validation or test; --set data.root=DIR",
            )  # fmt: skip

    def __len__(self) -> int:
        return self._first[-1] + len(self._parts[-1][2]) if self._parts else 0

    def facts(self) -> dict:
        """What the items follow from, without what the files hold."""
        parts = [
            [task, views.model_dump_json(), reader.source.model_dump_json(), len(reader), names]
            for task, views, reader, names in self._parts
        ]
        return {"root": str(self.run.data.root), "split": self.split, "sources": parts}

    def name(self, row: int) -> str:
        _, _, reader, own = self._part(row)
        return f"{reader.name}/{reader.key(own)}"

    def items(self, row: int) -> Iterator[Item]:
        """Raises BadSample."""
        task, views, reader, own = self._part(row)
        name, sample = self.name(row), reader.read(own)
        for modality in views.names():
            yield from _items_of(name, modality, sample.get(modality), views, task, self.split)

    def _part(self, row: int) -> tuple:
        """Task, views and reader of a row, and its number there."""
        place = max(place for place, first in enumerate(self._first) if first <= row)
        task, views, reader, _ = self._parts[place]
        return task, views, reader, row - self._first[place]


def _items_of(name: str, modality: str, raw, views: Views, task: str, split: str) -> Iterator[Item]:
    view = getattr(views, modality)
    if raw is None:
        return
    if modality == TEXT:
        for place, text in enumerate(raw):
            yield Item(f"{name}#text{place}", TEXT, [text], None, text, task, split, view)
        return
    kind = ("video" if view.frames > 1 else "image") if modality == "vision" else modality
    path = str(raw.path or raw.name) if isinstance(raw, Media) else None
    yield Item(f"{name}#{modality}", kind, raw, path, None, task, split, view)


def _column(source, modality: str) -> str:
    """What distinguishes the samples of a modality from those of another source."""
    made = source.made_of(modality)
    aside = {*MODALITIES, "label", "label_names", "templates", "turns", "captions_ignore", "weight"} - {modality}
    place = {name: value for name, value in source.model_dump(mode="json").items() if name not in aside}
    return json.dumps([modality, made, source.label if made else None, place], sort_keys=True)
