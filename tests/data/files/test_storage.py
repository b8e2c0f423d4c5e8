"""Files here and elsewhere: which ones a pattern names, what is tried again, and what is kept of remote ones."""

import pickle
from types import SimpleNamespace

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from imp_ds.data.files import storage
from imp_ds.data.files.storage import File, Storage, Unreachable, place
from imp_ds.errors import UserError

MEMORY = fsspec.filesystem("memory")


class Flaky(MemoryFileSystem):
    """The memory's files, of which the first reads after `failures` was set fail."""

    protocol = "flaky"
    store, pseudo_dirs = MemoryFileSystem.store, MemoryFileSystem.pseudo_dirs
    failures, attempts, error = 0, 0, ConnectionError("the line is dead")

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.replace("flaky:", "memory:"))

    def get_file(self, *args, **kwargs):
        Flaky.attempts += 1
        if Flaky.attempts <= Flaky.failures:
            raise Flaky.error
        super().get_file(*args, **kwargs)


fsspec.register_implementation("flaky", Flaky, clobber=True)


@pytest.fixture
def memory(request):
    """A folder of the memory's file system of the test's own."""
    folder = f"/{request.node.name}"
    yield f"memory:/{folder}"
    if MEMORY.exists(folder):
        MEMORY.rm(folder, recursive=True)


@pytest.fixture
def waits(monkeypatch):
    """The seconds that are waited, none of which passes."""
    waited = []
    monkeypatch.setattr(storage, "time", SimpleNamespace(sleep=waited.append))
    return waited


@pytest.fixture
def files(tmp_path):
    return Storage(str(tmp_path / "cache"), cache_gb=1.0, retries=2)


def test_a_pattern_names_files_of_any_file_system_in_order(files, memory, tmp_path):
    names = ["b-01.tar", "b-00.tar", "b-10.tar", "c.tar", "deep/d.tar"]
    (tmp_path / "folder[1]" / "deep").mkdir(parents=True)
    for name in names:
        (tmp_path / "folder[1]" / name).write_bytes(name.encode())
        MEMORY.pipe(f"{memory}/{name}".removeprefix("memory:/"), name.encode())
    for folder in (str(tmp_path / "folder[1]"), memory):
        found = lambda pattern: [file.name for file in files.files(storage.below(folder, pattern))]  # noqa: E731
        assert found("b-*.tar") == ["b-00.tar", "b-01.tar", "b-10.tar"]
        assert found("b-{00..02}.tar") == ["b-00.tar", "b-01.tar"]  # 02 is not there
        assert found("{c,b-10}.tar") == ["b-10.tar", "c.tar"]
        assert found("**/d.tar") == ["d.tar"]
        assert found("c.tar") == ["c.tar"]
        assert found("*.zip") == []
        assert files.files(storage.below(folder, "c.tar"))[0].size == 5
        assert files.names(folder) == ["b-00.tar", "b-01.tar", "b-10.tar", "c.tar"]
        assert files.names(folder, folders=True) == ["deep"]
        assert files.names(folder + "/nowhere") is None


def test_the_stamp_changes_with_the_file(files, memory, tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    MEMORY.pipe(f"/{memory.removeprefix('memory://')}/a", b"1")
    for address in (str(tmp_path / "a"), f"{memory}/a"):
        before = files.file(address)
        assert before == files.file(address)
        with fsspec.open(address, "wb") as out:
            out.write(b"2")
        after = files.file(address)
        assert before.address == after.address and before.size == after.size == 1 and before.stamp != after.stamp


def test_local_files_are_opened_where_they_are(files, tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    with files.open(files.file(str(tmp_path / "a"))) as file:
        assert file.name == str(tmp_path / "a")
    assert not (tmp_path / "cache").exists()
    with pytest.raises(FileNotFoundError):
        files.file(str(tmp_path / "b"))


def test_a_remote_file_is_copied_once(files, memory):
    Flaky.attempts = Flaky.failures = 0
    MEMORY.pipe(f"{memory.removeprefix('memory:/')}/a", b"one")
    file = files.file(memory.replace("memory", "flaky") + "/a")
    for _ in range(3):
        with files.open(file) as copy:
            assert copy.read() == b"one"
    assert Flaky.attempts == 1
    with pickle.loads(pickle.dumps(files)).open(file) as copy:
        assert copy.read() == b"one"
    assert Flaky.attempts == 1


def test_what_fails_is_tried_again_after_longer_waits(files, memory, waits):
    Flaky.attempts, Flaky.failures = 0, 2
    MEMORY.pipe(f"{memory.removeprefix('memory:/')}/a", b"one")
    file = files.file(memory.replace("memory", "flaky") + "/a")
    with files.open(file) as copy:
        assert copy.read() == b"one"
    assert Flaky.attempts == 3
    assert len(waits) == 2 and 0.25 <= waits[0] <= 0.5 <= waits[1] <= 1.0  # 0.5 s and 1 s, each cut by up to a half


def test_failures_end(files, memory, waits, tmp_path):
    Flaky.attempts, Flaky.failures = 0, 100
    MEMORY.pipe(f"{memory.removeprefix('memory:/')}/a", b"one")
    file = files.file(memory.replace("memory", "flaky") + "/a")
    with pytest.raises(Unreachable, match="the line is dead.*3 times"):
        files.open(file)
    assert Flaky.attempts == 3
    with pytest.raises(Unreachable, match="3 bytes came instead of 4"):  # a connection that was cut
        Flaky.failures = 0
        files.open(file._replace(size=4))
    with pytest.raises(FileNotFoundError):
        files.file(memory + "/b")
    assert not [path for path in (tmp_path / "cache").rglob("*.part")]


def test_a_file_that_may_not_be_read_is_not_tried_again(files, memory, waits, monkeypatch):
    Flaky.attempts, Flaky.failures = 0, 100
    monkeypatch.setattr(Flaky, "error", PermissionError("not yours"))
    MEMORY.pipe(f"{memory.removeprefix('memory:/')}/a", b"one")
    with pytest.raises(Unreachable, match="not yours"):
        files.read(memory.replace("memory", "flaky") + "/a", "1")
    assert Flaky.attempts == 1 and waits == []


def test_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert place("data", "images") == f"{tmp_path}/data/images"
    assert place("data", "/elsewhere/x") == "/elsewhere/x"
    assert place("data", f"file://{tmp_path}/x") == f"{tmp_path}/x"
    assert place("data", "memory://x/y/") == "memory://x/y"
    assert place("memory://corpus", "images") == "memory://corpus/images"
    for address in ("pipe:cat /etc/passwd", "pipe://cat", "gopher://x/y", "simplecache::memory://x"):
        with pytest.raises(UserError, match="unknown protocol"):
            place("data", address)


def test_the_package_that_an_address_needs_is_named(monkeypatch):
    def missing(protocol):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(UserError, match="Install s3fs"):
        place("data", "s3://bucket/x")


def test_a_query_is_no_pattern():
    assert not storage.is_pattern("https://host/a.tar?download=1")
    assert storage.is_pattern("https://host/{00..12}.tar")
    assert File("https://host/a.tar", 1, "").name == "a.tar"
