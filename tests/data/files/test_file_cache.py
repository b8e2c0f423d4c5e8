"""The file cache: its bound, and several processes that share it."""

import multiprocessing
import os
import time

import pytest

from imp_ds.data.files.file_cache import FileCache
from imp_ds.errors import UserError

KIB = 1024


def writes(size, calls=None):
    def make(path):
        if calls is not None:
            calls.append(size)
        path.write_bytes(b"x" * size)

    return make


def sizes(folder):
    return sorted(p.stat().st_size for p in folder.rglob("*") if p.is_file() and p.name != "lock")


def use(cache, key, size, when):
    """Open `key`, as if at the second `when`."""
    with cache.open(key, writes(size)) as file:
        os.utime(file.fileno(), (when, when))


def test_a_file_is_made_once(tmp_path):
    cache, calls = FileCache(tmp_path / "cache", 100 * KIB), []
    for _ in range(2):
        with cache.open("a", writes(5, calls)) as file:
            assert file.read() == b"xxxxx"
    with cache.open("b", writes(6, calls)) as file:
        assert len(file.read()) == 6
    assert calls == [5, 6]


def test_what_was_not_used_for_longest_goes(tmp_path):
    cache = FileCache(tmp_path / "cache", 100 * KIB)
    use(cache, "a", 40 * KIB, 1000)
    use(cache, "b", 30 * KIB, 2000)
    use(cache, "a", 40 * KIB, 3000)
    held = cache.open("b", writes(1))
    os.utime(held.fileno(), (2000, 2000))
    cache.open("c", writes(50 * KIB)).close()  # 120 KiB would be too many: b goes, which was used before a
    assert sizes(tmp_path) == [40 * KIB, 50 * KIB]
    assert len(held.read()) == 30 * KIB  # who had it open goes on
    held.close()


def _pin(folder, pinned, end):
    cache = FileCache(folder, 100 * KIB)
    cache.pin(["a", "b"])
    pinned.set()
    end.wait(30)


def test_what_a_process_that_is_alive_has_pinned_stays_whatever_the_bound_of_others(tmp_path):
    context, folder = multiprocessing.get_context("fork"), tmp_path / "cache"
    large, small = FileCache(folder, 100 * KIB), FileCache(folder, 20 * KIB)
    for when, key in enumerate("abc", 1):
        use(large, key, 20 * KIB, when)
    pinned, end = context.Event(), context.Event()
    other = context.Process(target=_pin, args=(folder, pinned, end))
    other.start()
    assert pinned.wait(30)
    use(small, "d", 10 * KIB, 4)  # a, b and c are too much for its bound, but only c may go
    assert [large.has(key) for key in "abcd"] == [True, True, False, True]
    end.set()
    other.join(30)
    use(small, "e", 10 * KIB, 5)
    assert [large.has(key) for key in "abde"] == [False, False, False, True] and not list((folder / "pins").iterdir())


def test_a_list_of_pins_is_there_as_a_whole_or_not(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("imp_ds.written_files.os.replace", killed)
    cache = FileCache(tmp_path / "cache", 100 * KIB)
    with pytest.raises(KeyboardInterrupt):
        cache.pin(["a"])
    monkeypatch.undo()
    pins = tmp_path / "cache" / "pins"
    assert [path.suffix for path in pins.iterdir()] == [".lock"]
    (pins / ".left.partial").write_text("x")  # of a process that was ended by force
    (pins / "left.lock").touch()
    use(cache, "b", 10 * KIB, 1)
    assert not [path for path in pins.iterdir() if "left" in path.name]


def test_a_file_larger_than_the_bound_is_refused(tmp_path):
    cache = FileCache(tmp_path / "cache", 100 * KIB)
    with pytest.raises(UserError, match="data.cache_gb"):
        cache.open("a", writes(101 * KIB))
    assert sizes(tmp_path) == []


def test_nothing_is_left_of_a_file_that_failed(tmp_path):
    cache = FileCache(tmp_path / "cache", 100 * KIB)

    def fails(path):
        path.write_bytes(b"half")
        raise ConnectionError("cut")

    with pytest.raises(ConnectionError):
        cache.open("a", fails)
    assert sizes(tmp_path) == []
    with cache.open("a", writes(3)) as file:
        assert len(file.read()) == 3


def test_what_a_dead_process_left_goes_and_what_another_writes_stays(tmp_path):
    cache = FileCache(tmp_path / "cache", 100 * KIB)
    use(cache, "a", 10 * KIB, time.time())
    folder = next(p for p in (tmp_path / "cache").iterdir() if p.is_dir())
    for name, age in (("dead.part", 7200), ("alive.part", 60)):
        (folder / name).write_bytes(b"x" * 45 * KIB)
        os.utime(folder / name, (time.time() - age,) * 2)
    cache.open("b", writes(20 * KIB)).close()
    assert sizes(tmp_path) == [10 * KIB, 20 * KIB, 45 * KIB] and (folder / "alive.part").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="data.cache_dir"):
        FileCache(tmp_path / "file" / "cache", KIB).open("a", writes(1))


def test_a_full_disk_is_named(tmp_path):
    def full(path):
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left"):
        FileCache(tmp_path / "cache", KIB).open("a", full)


def _one_of_many(folder, start, made):
    def make(path):
        with made.get_lock():
            made.value += 1
        time.sleep(0.05)
        path.write_bytes(b"y" * 10)

    start.wait(30)
    with FileCache(folder, 100 * KIB).open("a", make) as file:
        assert file.read() == b"y" * 10


def test_processes_make_a_file_once(tmp_path):
    context = multiprocessing.get_context("fork")
    start, made = context.Event(), context.Value("i", 0)
    workers = [context.Process(target=_one_of_many, args=(tmp_path / "cache", start, made)) for _ in range(4)]
    for worker in workers:
        worker.start()
    start.set()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0] * 4 and made.value == 1
