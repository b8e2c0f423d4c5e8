"""Where the samples of a tar shard are: an index, so that any of them is read without the others.

A sample is a run of members whose names are equal up to the first dot after the last slash (the WebDataset convention). Hidden
members (._x, .DS_Store, __MACOSX/), those without an extension, __meta.json and a README or LICENSE are no samples. Where an
extension comes twice in a run, another sample begins, which is reported.

The index stands beside the shard as NAME.idx, or in the cache where that cannot be: for a remote shard, or a folder that is not
ours to write in. It is made again when the shard's size or time has changed.

Shapes: N samples, M members.
"""

import errno
import itertools
import json
import multiprocessing
import os
import signal
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np

from imp_ds.data.files.index import Index, IndexWriter, cached_index
from imp_ds.data.files.storage import File, Storage, local_path
from imp_ds.data.sources.named_files import check_name
from imp_ds.data.sources.tar.headers import Damaged, Member, members
from imp_ds.modalities.media import BadSample

FORMAT = "4"  # of the index
TEXTS = {"txt", "text", "caption", "cls", "cls2", "index", "id", "json"}  # the last part of their extensions
_BESIDE = {"readme", "license", "licence", "notice", "changelog", "copying", "attribution", "authors"}
_PROSE = {"md", "txt", "rst", "html", "pdf"}
_SHORT = 7  # bytes: shorter texts, as labels are, stand in the index itself
WHOLE, UNSAFE, CUT = range(3)  # what a sample is: usable; a link, a device or a name that leads out; not all there
_IN_PARALLEL = 1 << 26  # bytes of shards from which it pays to start processes
_BLOCK = 4096  # samples that are written together
_REMEMBERED = 1 << 17  # samples of a shard
_HELD = 1 << 18  # bytes of an index that is held in memory: of a few thousand samples
_THREE, _SIX = struct.Struct("<3q"), struct.Struct("<6q")
# samples: state, end of its key in names, end of its members, three numbers each; members: number of the extension, offset, size;
# the offset of a short text is its bytes as an integer n, as -1 - n
_COLUMNS = dict(samples="int64", names="uint8", members="int64")


class TarSample(NamedTuple):
    """A sample of a shard: folder and name without extensions; WHOLE, UNSAFE or CUT; {extension: (offset, size)}, where an
    offset below 0 is a short text itself (`short_text`)."""

    key: str
    state: int
    members: dict[str, tuple[int, int]]


def short_text(offset: int, size: int) -> bytes:
    """The text whose bytes stand in the index."""
    return (-1 - offset).to_bytes(size, "little")


class TarIndex:
    """The samples of one shard, read from its index: what a sample needs lies together, so three reads find it, or none where the
    index is short and held in memory."""

    def __init__(self, index: Index):
        self.extensions = json.loads(index.facts["extensions"])
        # of the first two samples of one name side by side, and of the first whose members do not stand together: the name, or ""
        self.repeated, self.torn = index.facts["repeated"], index.facts["torn"]
        columns = [index.columns[name] for name in ("samples", "names", "members")]
        if sum(column.bytes for column in columns) <= _HELD:
            columns = [column.held() for column in columns]
        self._samples, self._names, self._members = columns

    def __len__(self) -> int:
        return len(self._samples) // 3

    @property
    def damage(self) -> str | None:
        """What is wrong with a shard that cannot be read to its end."""
        full = len(self) - 1
        last = self.sample(full) if len(self) else None
        if last is None or last.state != CUT:
            return f"several samples side by side are called {self.repeated}; each is read" if self.repeated else None
        return f"cut off after {full:,} samples ({last.key}); what came after them is lost, so get this shard again"

    def sample(self, number: int) -> TarSample:
        if number:
            _, key_begin, begin, state, key_end, end = _SIX.unpack(self._samples.raw(3 * number - 3, 6))
        else:
            key_begin, begin, (state, key_end, end) = 0, 0, _THREE.unpack(self._samples.raw(0, 3))
        found = _THREE.iter_unpack(self._members.raw(3 * begin, 3 * (end - begin)))
        members = {self.extensions[extension]: (offset, size) for extension, offset, size in found}
        return TarSample(os.fsdecode(self._names.raw(key_begin, key_end - key_begin)), state, members)


def open_index(storage: Storage, file: File) -> TarIndex:
    """The index of a shard, made when it is missing or of an older shard. Raises what opening the shard raises."""
    beside = _beside(file)
    if beside is not None:
        found = _read(beside, file)
        if found is not None:
            return found
        try:
            return _write_beside(storage, file, beside)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT):
                raise
    with storage.open(file) as shard:
        return TarIndex(cached_index(storage.file_cache, _key(file), partial(write_index, shard, file)))


def make_indexes(storage: Storage, files: list[File], stage: str, progress: Callable | None) -> None:
    """Make the indexes that are missing, in several processes where that pays; `progress(stage, done, total)` counts shards."""
    missing = [file for file in files if not _is_there(storage, file)]
    workers = min(len(missing), os.cpu_count() or 1)
    done, total = len(files) - len(missing), len(files)
    if workers > 1 and sum(max(0, file.size) for file in missing) > _IN_PARALLEL:
        context, deaf = multiprocessing.get_context("spawn"), (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for this process
        with ProcessPoolExecutor(workers, context, initializer=signal.signal, initargs=deaf) as pool:
            ready = pool.map(partial(_make_one, storage), missing)
            for number, _ in enumerate(ready, 1):
                _tell(progress, stage, done + number, total)
        return
    for number, file in enumerate(missing, 1):
        _make_one(storage, file)
        _tell(progress, stage, done + number, total)


def _is_there(storage: Storage, file: File) -> bool:
    beside = _beside(file)
    return beside is not None and _read(beside, file) is not None or storage.file_cache.has(_key(file))


def _key(file: File) -> str:
    """Of an index in the cache."""
    return f"tar {FORMAT} {file.address} {file.stamp}"


def _make_one(storage: Storage, file: File) -> None:
    open_index(storage, file)


def _tell(progress: Callable | None, stage: str, done: int, total: int) -> None:
    if progress is not None:
        progress(stage, done, total)


def _beside(file: File) -> Path | None:
    """Where the index of a local shard stands; None where nothing may be written (root, who may write everywhere, is asked not
    to change a folder that is closed to all)."""
    path = local_path(file.address)
    if path is None or not path.parent.stat().st_mode & 0o222:
        return None
    return path.with_name(path.name + ".idx")


def _read(path: Path, file: File) -> TarIndex | None:
    """The index in a file; None when there is none, it is damaged, or belongs to another shard."""
    try:
        index = Index(open(path, "rb"))
        return TarIndex(index) if index.facts.get("stamp") == file.stamp and index.facts.get("format") == FORMAT else None
    except (OSError, ValueError, KeyError):
        return None


def _write_beside(storage: Storage, file: File, path: Path) -> TarIndex:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with storage.open(file) as shard:
            write_index(shard, file, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return TarIndex(Index(open(path, "rb")))


def write_index(shard: BinaryIO, file: File, path: Path) -> None:
    """Write the index of an open shard to `path`."""
    writer, extensions, key_end, member_end = IndexWriter(path, **_COLUMNS), {}, 0, 0
    order = _Order()
    samples = order.watched(_samples(shard))
    while block := list(itertools.islice(samples, _BLOCK)):
        names = [os.fsencode(key) for key, _, _ in block]
        entries = [entry for _, _, found in block for entry in found.items()]
        key_ends = key_end + np.cumsum([len(name) for name in names])
        member_ends = member_end + np.cumsum([len(found) for _, _, found in block])
        key_end, member_end = int(key_ends[-1]), int(member_ends[-1])
        writer.append("samples", np.stack([[state for _, state, _ in block], key_ends, member_ends], 1).ravel())
        writer.append("names", np.frombuffer(b"".join(names), np.uint8))
        numbers = ((extensions.setdefault(name, len(extensions)), _offset(shard, name, m), m.size) for name, m in entries)
        writer.append("members", [number for three in numbers for number in three])
    facts = dict(extensions=json.dumps(list(extensions)), stamp=file.stamp, format=FORMAT)
    writer.close(**facts, repeated=order.repeated, torn=order.torn)


class _Order:
    """Notes how the samples of a shard follow each other.

    repeated: the name of the first that stands beside another one of its name; torn: of the first some of whose members stand
    elsewhere. A number is held of each of the first samples.
    """

    def __init__(self):
        self.repeated, self.torn = "", ""
        self._seen: dict[int, frozenset[str]] = {}
        self._kinds: dict[frozenset[str], frozenset[str]] = {}  # each set of extensions once

    def watched(self, samples: Iterator[tuple[str, int, dict[str, Member]]]) -> Iterator[tuple[str, int, dict[str, Member]]]:
        before = None
        for key, state, found in samples:
            if state != CUT:
                extensions = self._kinds.setdefault(kind := frozenset(found), kind)
                # a shard that is sorted by extension comes back to its first samples: those are enough to remember
                few = len(self._seen) < _REMEMBERED
                earlier = self._seen.setdefault(hash(key), extensions) if few else self._seen.get(hash(key), extensions)
                if key == before and not self.repeated:
                    self.repeated = _shown(key)
                elif key != before and earlier is not extensions and earlier.isdisjoint(extensions) and not self.torn:
                    self.torn = _shown(key)
                before = key
            yield key, state, found


def _shown(key: str) -> str:
    return os.fsencode(key).decode("utf-8", "replace")


def _offset(shard: BinaryIO, extension: str, member: Member) -> int:
    """Of a member, as the index holds it."""
    if member.kind != "file" or member.size > _SHORT or extension.rpartition(".")[2] not in TEXTS:
        return member.offset
    text = os.pread(shard.fileno(), member.size, member.offset)
    return -1 - int.from_bytes(text, "little") if len(text) == member.size else member.offset


def _samples(shard: BinaryIO) -> Iterator[tuple[str, int, dict[str, Member]]]:
    """(key, state, {extension: member}) of each sample; what stands after a damaged header is one more, CUT."""
    end = os.fstat(shard.fileno()).st_size
    key, state, found = None, WHOLE, {}
    try:
        for member in members(shard.fileno()):
            if member.kind == "folder":
                continue
            folder, slash, base = member.name.rpartition("/")
            stem, _, extension = base.partition(".")
            if _is_foreign(folder, stem, extension):
                continue
            if folder + slash + stem != key or extension.lower() in found:
                if key is not None:
                    yield key, state, found
                key, state, found = folder + slash + stem, WHOLE, {}
            state = max(state, _state(member, end))
            found[extension.lower()] = member
    except Damaged as error:
        if key is not None:
            yield key, state, found
        key, state, found = f"after {key}: {error}", CUT, {}
    if key is not None:
        yield key, state, found


def _is_foreign(folder: str, stem: str, extension: str) -> bool:
    """Whether a member is no part of a sample: hidden, without an extension, or one that tools and people put beside samples."""
    if not stem or not extension or stem.startswith("__") or stem.lower() in _BESIDE and extension.lower() in _PROSE:
        return True
    return any(part == "__MACOSX" or part.startswith(".") and part not in (".", "..") for part in folder.split("/"))


def _state(member: Member, end: int) -> int:
    try:
        check_name(str(PurePosixPath(member.name)), "")
    except BadSample:
        return UNSAFE
    if member.kind != "file":
        return UNSAFE
    return CUT if member.offset + member.size > end else WHOLE
