"""Disks without room: records wait for it and none is cut, what is made as a whole is complete or absent."""

import errno
import json
import multiprocessing
import os
import resource

import numpy
import pytest
from safetensors.numpy import save_file
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from helpers.records import make_run, record
from imp_ds.errors import UserError
from imp_ds.train.recording.history import cut_lines
from imp_ds.train.recording.monitor import Monitor
from imp_ds.train.recording.record_file import RecordFile
from imp_ds.train.staged_folder import staged_folder


class Disk:
    """`os.write` on a disk with room for `left` more bytes; None: for all."""

    def __init__(self, monkeypatch):
        self.left, self._write = None, os.write
        monkeypatch.setattr(os, "write", self)

    def __call__(self, file: int, content) -> int:
        if self.left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = bytes(content)[: self.left]
        if self.left is not None:
            self.left -= len(taken)
        return self._write(file, taken)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


def test_records_wait_for_room_and_none_is_cut(disk, tmp_path, capsys):
    file = RecordFile(tmp_path / "folder" / "records")
    file.add(b"one\n")
    assert file.flush() and file.path.read_bytes() == b"one\n"
    disk.left = 2
    for record_ in (b"two\n", b"three\n"):
        file.add(record_)
        assert not file.flush()
    assert file.path.read_bytes() == b"one\n"  # the two bytes that found room are taken back
    disk.left = None
    assert file.flush() and file.path.read_bytes() == b"one\ntwo\nthree\n"
    file.close()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and "No space left" in said[0] and "written again" in said[1]


def test_records_that_find_no_room_to_the_end_are_counted(disk, tmp_path, capsys):
    file = RecordFile(tmp_path / "records")
    disk.left = 0
    file.add(b"one\n")
    file.add(b"two\n")
    file.close()
    assert "2 records are lost" in capsys.readouterr().err and file.path.read_bytes() == b""


def test_a_run_whose_disk_is_full_for_a_while_has_all_of_its_curves(disk, tmp_path, capfd):
    disk.left = 0  # from the start: not even the first event finds room
    monitor = Monitor(tmp_path, make_run(), enabled=True, total_steps=8)
    for step in range(1, 9):
        if step == 7:
            disk.left = None
        record(monitor, step, "image_text", loss=float(step))
    monitor.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    [events] = (tmp_path / "tensorboard").iterdir()
    found = [event.step for event in EventFileLoader(str(events)).Load() for value in event.summary.value
             if value.tag == "train/image_text/loss"]  # fmt: skip
    assert found == [2, 4, 6, 8]
    assert capfd.readouterr().err.count("cannot be written") == 1


def test_history_is_cut_without_room_and_damage_is_one_message(disk, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2}\n{"step": 4}\n{"step": 6}\n{"st')
    disk.left = 0
    assert cut_lines(path, 4) == [{"step": 2}, {"step": 4}] and path.read_text() == '{"step": 2}\n{"step": 4}\n'


@pytest.mark.parametrize(
    "line", [b"[" * 100_000, b"\xff", b"7", b'{"step": "x"}', b'{"step": 1, "kind": "train", "tasks": 5}', b'{"step": 1}']
)
def test_a_damaged_line_is_named(line, tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(line + b"\n")
    with pytest.raises(ValueError, match="metrics.jsonl, line 1"):
        Monitor(tmp_path, make_run(), enabled=True, total_steps=8, start_step=4)


def _export(out, said):
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    try:
        with staged_folder(out, "exported model") as staging:
            save_file({"x": numpy.zeros(10_000)}, staging / "model.safetensors")
    except UserError as error:
        said.send(str(error))


def test_an_export_without_room_is_one_message_and_nothing_is_left(tmp_path):
    forking = multiprocessing.get_context("fork")
    hears, says = forking.Pipe(duplex=False)
    child = forking.Process(target=_export, args=(tmp_path / "model", says))
    child.start()
    child.join(30)
    assert child.exitcode == 0 and hears.poll() and hears.recv().startswith("the exported model cannot be written")
    assert not list(tmp_path.iterdir())
