"""Which files a split of a source has."""

from collections.abc import Callable
from typing import NamedTuple

from imp_ds.data.files.storage import File, Storage, below, is_pattern, place
from imp_ds.data.sources.named_files import NamedFiles
from imp_ds.errors import UserError
from imp_ds.tasks import Source

MAKE = (
    "set data.root and source.path, or make a corpus with `imp_ds corpus digits DIR` or `imp_ds corpus talk DIR`, "
    "and name it with --set data.root=DIR"
)


_LINES = (".jsonl", ".csv", ".tsv", ".txt")
_SPLIT_FOLDERS = {"train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval"}
_SHOWN = 12  # names in a message
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.tsv", "*.txt")


class NoSplit(UserError):
    """A source has no such split."""


class Wanted(NamedTuple):
    """A split of a source that is to be opened.

    root: folder or address that `source.path` is relative to.
    window: rows that are read in turns, any of them at any time (`imp_ds.data.order.order`).
    progress: called with (stage, done, total) while indexes are built.
    """

    storage: Storage
    root: str
    source: Source
    split: str
    window: int = 1
    progress: Callable | None = None

    @property
    def name(self) -> str:
        """The reader's."""
        return f"{self.source.path}[{self.split}]"

    @property
    def address(self) -> str:
        """Of the source's path."""
        return place(self.root, self.source.path)

    @property
    def called(self) -> str:
        """The split, as it is called there, or a pattern of its files."""
        return self.source.splits.get(self.split, self.split)

    @property
    def columns(self) -> list[str]:
        """Those that are read."""
        named = (getattr(self.source, role) for role in self.source.roles())
        return list(dict.fromkeys([*(column for column in named if column is not None), *self.source.made_columns()]))

    def named_files(self, file: File) -> NamedFiles:
        """What the rows of a file name: files below its folder, and below the source's media_root."""
        roots = [place(self.root, root) for root in self.source.media_root]
        return NamedFiles(self.storage, file.address.rpartition("/")[0], file.stamp, roots)

    def folder(self, *suffixes: str) -> str:
        """What the patterns of the splits, and the file of class names, are relative to."""
        return self.address.rpartition("/")[0] if _names_files(self.source.path, *suffixes) else self.address


def shards(wanted: Wanted, suffix: str) -> list[File]:
    """The shards of a split, sorted: those that `source.splits` names, or `{split}-*`, `{split}*`, `{split}/*` with this suffix,
    in the folder or in its folder `data`. A path that is a shard or a pattern of shards is the split "train".

    Raises NoSplit when there are none, and Unreachable.
    """
    folder, called = wanted.folder(suffix), wanted.called
    if _names_files(called, suffix):
        patterns = [below(folder, called)]
    elif folder != wanted.address:
        patterns = [below(place(wanted.root, ""), wanted.source.path)] if wanted.split == "train" else []
    else:
        usual = [f"{called}-*{suffix}", f"{called}*{suffix}", f"{called}/*{suffix}"]
        patterns = [below(folder, pattern) for pattern in (*usual, *(f"data/{pattern}" for pattern in usual))]
    if found := _first(wanted.storage, patterns):
        return found
    if folder == wanted.address and _is_empty(wanted.storage, folder):
        raise _empty(folder)
    raise NoSplit(
        f"{wanted.source.path} has no shards of the split {wanted.split}",
        got=f"no {', no '.join(patterns[:3])}" if patterns else None,
        fix=f'set data.root and source.path, or say which files they are: source.splits={{"{wanted.split}": "PATTERN{suffix}"}}',
    )  # fmt: skip


def metadata_files(wanted: Wanted) -> tuple[str, list[File]]:
    """(folder, files of rows) of a split of a folder of media; no files where folders of classes are all there is.

    Raises NoSplit when there is no such folder or nothing in it that shows what is a sample, and Unreachable.
    """
    storage = wanted.storage
    if _names_files(wanted.source.path, *_LINES):
        folder, patterns = wanted.address.rpartition("/")[0], [wanted.address] if wanted.split == "train" else []
        if wanted.split in wanted.source.splits:
            patterns = [below(folder, wanted.called)]
        if found := _first(storage, patterns):
            return folder, found
        raise _no_lines(wanted, patterns)
    if _names_files(wanted.called, *_LINES):
        folder, patterns = wanted.address, [below(wanted.address, wanted.called)]
    else:
        folder = _split_folder(wanted)
        patterns = [below(folder, name) for name in _METADATA]
        if set(wanted.source.roles()) - {"text", "label"}:
            patterns.pop()  # a .txt beside a picture is its caption
    if found := _first(storage, patterns):
        return folder, found
    classes = storage.names(folder, folders=True)
    if classes is None:
        if storage.names(wanted.address) is None and storage.files(wanted.address):
            raise _no_table(wanted)
        raise _no_folder(storage, place(wanted.root, ""), folder)
    if len(patterns) == 1:
        raise _no_lines(wanted, patterns)
    if _is_empty(storage, folder):
        raise _empty(folder)
    if not classes and wanted.source.text is None and wanted.source.label is not None:
        raise NoSplit(f"{folder} has no metadata.jsonl", got="no metadata.csv or .tsv, and no folders of classes", fix=MAKE)
    return folder, []


def _split_folder(wanted: Wanted) -> str:
    """The folder of a split. A folder that has none of its own for any split is the split "train", as a single table is."""
    storage, folder = wanted.storage, place(wanted.address, wanted.called)
    if wanted.split != "train" or wanted.source.splits or storage.names(folder, folders=True) is not None:
        return folder
    inside = storage.names(wanted.address, folders=True)
    return folder if inside is None or {name.lower() for name in inside} & _SPLIT_FOLDERS else wanted.address


def _no_lines(wanted: Wanted, patterns: list[str]) -> NoSplit:
    root, folder = place(wanted.root, ""), wanted.folder(*_LINES)
    if wanted.storage.names(root, folders=True) is None:
        return _no_folder(wanted.storage, root, root)
    there = [name for name in wanted.storage.names(folder) or [] if name.endswith(_LINES)]
    return NoSplit(
        f"{wanted.source.path} has no split {wanted.split}", got=f"no {', no '.join(patterns) or 'file for it'}",
        allowed=f"in {folder}: {', '.join(there[:_SHOWN])}{' ...' if len(there) > _SHOWN else ''}" if there else None,
        fix=f'say which file it is: source.splits={{"{wanted.split}": "NAME.csv"}}',
    )  # fmt: skip


def _no_table(wanted: Wanted) -> UserError:
    name = wanted.source.path
    fix = "name its folder, or set source.format"
    if name.endswith(".json"):
        fix = f"write its list with a row in each line: jq -c '.[]' {name} > {name}l"
    return UserError("source.path is a file of no kind that is read so", got=name, allowed=", ".join(_LINES), fix=fix)


def _first(storage: Storage, patterns: list[str]) -> list[File]:
    return next((found for pattern in patterns if (found := storage.files(pattern))), [])


def _no_folder(storage: Storage, root: str, folder: str) -> NoSplit:
    below = storage.names(root, folders=True)
    if below is None:
        return NoSplit(f"the data folder {root} does not exist", fix=MAKE)
    above = folder.rpartition("/")[0]
    there = storage.names(above, folders=True)
    above, there = (root, below) if there is None else (above, there)
    return NoSplit(f"the data folder {folder} does not exist", allowed=f"in {above}: {', '.join(there) or 'nothing'}", fix=MAKE)


def _is_empty(storage: Storage, folder: str) -> bool:
    """Whether a folder is there, with nothing in it."""
    return storage.names(folder) == [] and not storage.names(folder, folders=True)


def _empty(folder: str) -> NoSplit:
    return NoSplit(f"the folder {folder} is empty", fix="put the data there, or set data.root and source.path to where they are")


def _names_files(path: str, *suffixes: str) -> bool:
    """Whether a path is a file or a pattern of files, rather than a folder."""
    return is_pattern(path) or path.partition("?")[0].endswith(suffixes)
