"""Lines and records by number: the same as reading the file from its beginning."""

import csv
import pickle

import pytest

from imp_ds.data.files import index_lines
from imp_ds.data.files.index_lines import Lines
from imp_ds.data.files.storage import Storage
from imp_ds.errors import UserError
from imp_ds.modalities.media import BadSample


def lines_of(tmp_path, data, kind="lines", progress=None):
    (tmp_path / "text").write_bytes(data)
    files = Storage(str(tmp_path / "cache"))
    return Lines(files, files.file(str(tmp_path / "text")), kind, progress)


LINES = [
    b"",
    b"\n \n\r\n\t",
    b"one",
    b"one\n",
    b"one\ntwo",
    b"\n\none\r\n  \n\ntwo is longer\n\n",
    b"a\n" * 20 + b"   \n" * 9 + b"the last one",
    b"x" * 50 + b"\ny",
]


@pytest.mark.parametrize("block", [1, 2, 7, 1 << 20])  # a line may lie over any number of blocks
@pytest.mark.parametrize("data", LINES)
def test_lines_are_those_that_are_not_blank(data, block, tmp_path, monkeypatch):
    monkeypatch.setattr(index_lines, "_BLOCK", block)
    lines = lines_of(tmp_path, data)
    expected = [line.strip() for line in data.split(b"\n") if line.strip()]
    assert [lines.read(number).strip() for number in range(len(lines))] == expected


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"a,b\n1,2\n3,4",
        b'a,b\r\n"one\r\n\r\ntwo",2\r\n\r\n3,"4 ""or"" 5"\r\n',
        "a,b\n\u00e9,\u4e2d\n".encode(),
    ],
)
def test_records_are_those_of_the_csv_module(data, tmp_path):
    records = lines_of(tmp_path, data, "records")
    one = lambda number: next(csv.reader(records.read(number).decode().splitlines(keepends=True)))  # noqa: E731
    expected = [record for record in csv.reader(data.decode().splitlines(keepends=True)) if record]
    assert [one(number) for number in range(len(records))] == expected


def test_a_file_that_is_no_csv_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not CSV"):
        lines_of(tmp_path, b'a,b\n1,"' + b"never closed " * 20000, "records")


def test_the_index_is_made_once_and_again_when_the_file_changes(tmp_path, monkeypatch):
    made = []
    write = index_lines._write_index
    monkeypatch.setattr(index_lines, "_write_index", lambda *args: made.append(args[-1]) or write(*args))
    first = lines_of(tmp_path, b"one\ntwo\n")
    files = first.storage
    again = [Lines(files, first.file, "lines"), pickle.loads(pickle.dumps(first))]
    assert len(made) == 1 and [lines.read(1) for lines in again] == [b"two\n"] * 2
    assert len(lines_of(tmp_path, b"one\ntwo\nthree\n")) == 3 and len(made) == 2


def test_lines_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(index_lines, "_MOST_BYTES", 10)
    lines = lines_of(tmp_path, b"one\n" + b"x" * 11 + b"\nthree\n")
    with pytest.raises(BadSample, match="too large"):
        lines.read(1)
    (tmp_path / "text").write_bytes(b"one")
    with pytest.raises(BadSample, match="became shorter"):
        lines.read(2)


def test_progress_is_reported_of_long_files_only(tmp_path, monkeypatch):
    reported = []
    lines_of(tmp_path, b"short\n", progress=lambda *args: reported.append(args))
    assert reported == []
    monkeypatch.setattr(index_lines, "_LONG", 1)
    monkeypatch.setattr(index_lines, "_BLOCK", 4)
    lines_of(tmp_path, b"one\ntwo\nthree", progress=lambda *args: reported.append(args))
    assert reported == [("indexing text", done, 13) for done in (4, 8, 12, 13)]
