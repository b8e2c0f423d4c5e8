"""The writer in the background: what it saves, what stays, and what a disk that fails or hangs may do to training."""

import json
import resource
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.plain_engine import check_complete, fill, make_engine
from imp_ds.errors import UserError
from imp_ds.train import checkpoint
from imp_ds.train.checkpoint import Writer, files
from imp_ds.train.checkpoint import publish as publishing


@pytest.fixture
def engine():
    return make_engine()


def save(writer, step: int) -> None:
    fill(writer.engine, step)
    writer.save(step, {"step": step})


def names(folder) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


class Gate:
    """Holds the thread in its first fsync until it is opened."""

    def __init__(self, monkeypatch):
        self.opened, self.reached, fsync = threading.Event(), threading.Event(), files.os.fsync

        def held(descriptor):
            self.reached.set()
            assert self.opened.wait(20)
            fsync(descriptor)

        monkeypatch.setattr(files.os, "fsync", held)


def test_it_saves_the_state_of_its_call_while_training_goes_on(engine, tmp_path, monkeypatch, capsys):
    writer, gate = Writer(engine, tmp_path, keep=2), Gate(monkeypatch)
    save(writer, 1)
    assert gate.reached.wait(20)
    fill(engine, 2)  # training goes on
    assert writer.poll() is None and names(tmp_path) == [f".staging-step_00000001-{writer._token}-1"]
    gate.opened.set()
    assert writer.wait() == tmp_path / "checkpoints" / "step_00000001"
    assert check_complete(writer.wait()) == 1
    assert writer.poll() is None  # reported once
    assert capsys.readouterr().out.count("checkpoint step_00000001: written in") == 1


@pytest.mark.gpu
def test_a_snapshot_of_a_gpu_is_pinned_and_done_when_the_call_returns(tmp_path):
    engine = make_engine(10_000_000, "cuda")
    writer = Writer(engine, tmp_path, keep=1)
    assert all(buffer.is_pinned() for buffer in writer._snapshot._buffers.values())
    save(writer, 1)
    fill(engine, 2)
    assert check_complete(writer.wait()) == 1


def test_a_second_save_waits_for_the_first(engine, tmp_path, monkeypatch):
    writer, gate = Writer(engine, tmp_path, keep=2), Gate(monkeypatch)
    save(writer, 1)
    threading.Timer(0.3, gate.opened.set).start()
    save(writer, 2)
    assert writer._job.waited_s > 0.2
    writer.wait()
    assert [check_complete(tmp_path / "checkpoints" / name) for name in names(tmp_path)[1:]] == [1, 2]


def test_files_are_safetensors_of_ranges(engine, tmp_path):
    writer = Writer(engine, tmp_path, keep=1)
    save(writer, 3)
    found = load_file(writer.wait() / "optimizer-00000.safetensors")
    assert {key: tuple(value.shape) for key, value in found.items()} == {
        f"{moment}/{name}": shape
        for moment in ("exp_avg", "exp_avg_sq")
        for name, shape in {"wide": (1000,), "odd": (7,), "one": (1,)}.items()
    }
    assert torch.equal(found["exp_avg/odd"], torch.full((7,), 3.25))


def test_ranges_are_joined_across_files(tmp_path):
    # [0, 4) of the first file and [4, 10) of the second hold their positions
    reader = object.__new__(checkpoint.Reader)
    reader.index = {"w": {"shape": [10], "parts": [[0, 4, "a"], [4, 10, "b"]]}}
    reader.folder, reader.references, reader._open = tmp_path, {}, {}
    save_file({"w": torch.arange(0.0, 4)}, tmp_path / "a")
    save_file({"w": torch.arange(4.0, 10)}, tmp_path / "b")
    for start, stop in ((0, 10), (0, 4), (4, 10), (3, 5), (5, 6), (2, 2)):
        assert torch.equal(reader.read("w", start, stop), torch.arange(float(start), stop))
    reader.folder, reader.index["w"]["parts"] = Path("f"), [[0, 4, "a"], [5, 10, "b"]]
    with pytest.raises(UserError, match="lacks a part of a parameter\n  got:     f: w from 4"):
        reader.read("w", 3, 6)


def test_the_newest_stay_and_milestones_for_ever(engine, tmp_path):
    writer = Writer(engine, tmp_path, keep=2, milestone_every=4)
    for step in range(1, 11):
        save(writer, step)
    writer.wait()
    # newest two of ten, and the multiples of four
    assert names(tmp_path) == ["latest"] + [f"step_{step:08d}" for step in (4, 8, 9, 10)]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_00000010\n"


def test_saving_a_step_again_never_leaves_the_run_without_it(engine, tmp_path, monkeypatch):
    save(writer := Writer(engine, tmp_path, keep=1), 5)
    writer.wait()
    rename = publishing.Path.rename

    def killed_before_the_new_name(path, target):
        if path.name.startswith(files.STAGING):
            raise OSError("killed here")
        return rename(path, target)

    monkeypatch.setattr(publishing.Path, "rename", killed_before_the_new_name)
    save(writer, 5)
    with pytest.raises(UserError, match="killed here"):
        writer.wait()
    assert check_complete(checkpoint.newest(tmp_path)) == 5
    monkeypatch.undo()
    save(writer, 5)
    assert check_complete(writer.wait()) == 5
    assert names(tmp_path) == ["latest", "step_00000005"] and checkpoint.steps(tmp_path) == [5]


def test_a_full_disk_is_one_line_and_training_goes_on(engine, tmp_path, capsys):
    save(writer := Writer(engine, tmp_path, keep=3), 1)
    writer.wait()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[1]))  # less than the moments' 8 kB: a real failure of write()
    try:
        save(writer, 2)
        writer._job.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    ended = writer.poll()
    assert ended.step == 2 and "File too large" in ended.problem
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("checkpoint step_00000002 failed, the one before stays: ")
    assert names(tmp_path) == ["latest", "step_00000001"]  # the part of it is gone
    with pytest.raises(UserError, match="the checkpoint could not be written\n  got: .*step_00000002: .*File too large"):
        writer.wait()
    save(writer, 3)
    assert check_complete(writer.wait()) == 3 and names(tmp_path) == ["latest", "step_00000001", "step_00000003"]


def test_a_disk_that_hangs_holds_nobody_for_longer_than_its_time(engine, tmp_path, monkeypatch, capsys):
    writer, gate = Writer(engine, tmp_path, keep=2, timeout_s=0.2), Gate(monkeypatch)
    save(writer, 1)
    start = time.monotonic()
    with pytest.raises(UserError, match="rank 0 was not done after 0.2 s"):
        writer.wait()
    assert time.monotonic() - start < 5
    hung = writer._job.thread
    assert hung.is_alive() and "not done after 0.2 s" in capsys.readouterr().err
    writer.timeout_s = 20.0
    save(writer, 2)  # its snapshot takes the memory that the hung thread still reads
    gate.opened.set()
    assert check_complete(writer.wait()) == 2
    hung.join(20)
    assert names(tmp_path) == ["latest", "step_00000002"]  # what hung was not published when it went on


def test_a_late_failure_of_any_kind_does_not_reach_training(engine, tmp_path, monkeypatch, capsys):
    writer = Writer(engine, tmp_path, keep=2)
    save(writer, 1)
    writer.wait()
    monkeypatch.setattr(publishing.files, "flush", lambda path: 1 / 0)
    save(writer, 2)
    writer._job.wait()
    assert writer.poll().problem == "ZeroDivisionError: division by zero"
    assert check_complete(checkpoint.newest(tmp_path)) == 1 and names(tmp_path) == ["latest", "step_00000001"]


def test_a_new_start_removes_what_killed_saves_left(engine, tmp_path):
    save(writer := Writer(engine, tmp_path, keep=2), 1)
    writer.wait()
    folder = tmp_path / "checkpoints"
    for name in (".staging-step_00000002-0badc0de-1", ".deleted-step_00000000"):
        shutil.copytree(folder / "step_00000001", folder / name)
    save(writer := Writer(engine, tmp_path, keep=2), 2)
    writer.wait()
    assert names(tmp_path) == ["latest", "step_00000001", "step_00000002"]


def test_the_pointer_is_for_people(engine, tmp_path):
    save(writer := Writer(engine, tmp_path, keep=2), 1)
    writer.wait()
    (tmp_path / "checkpoints" / "latest").write_text("step_00000099\n")
    assert check_complete(checkpoint.newest(tmp_path)) == 1


def test_a_folder_that_cannot_be_made_is_refused_at_the_start(engine, tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(UserError, match="the checkpoint folder cannot be made"):
        Writer(engine, tmp_path, keep=2)


def test_another_format_is_refused_with_what_to_do(engine, tmp_path):
    save(writer := Writer(engine, tmp_path, keep=2), 1)
    folder = writer.wait()
    (folder / "state.json").write_text(json.dumps({"format": 1, "step": 1}))
    with pytest.raises(UserError, match="another format\n  got: .*format 1\n  allowed: format 4\n  fix: "):
        checkpoint.Reader(folder)
