"""JSON that somebody else wrote: read, or refused in one message that names the file."""

import pytest

from imp_ds.errors import UserError
from imp_ds.json_files import parse_json, read_json
from imp_ds.written_files import write_file, write_json


@pytest.mark.parametrize(
    "content, message",
    [
        (b"{", "is not JSON"), (b"\xff\xfe{", "is not JSON"), (b"[" * 100_000, "nested too deeply"),
        (b"[]", "got: +a list .*\n  allowed: an object"), (b"7" * 5000, "is not JSON"), (b"", "is not JSON"),
    ],
)  # fmt: skip
def test_what_is_no_object_is_named(tmp_path, content, message):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_json(tmp_path / "x.json", dict, "write it anew")
    assert str(tmp_path / "x.json") in str(error.value) and "write it anew" in str(error.value)


def test_a_file_that_is_not_there_and_a_byte_order_mark(tmp_path):
    with pytest.raises(UserError, match="x.json cannot be read"):
        read_json(tmp_path / "x.json")
    assert parse_json(b"\xef\xbb\xbf[1]", "x", list) == [1]


def test_a_file_is_replaced_whole_or_stays(tmp_path, monkeypatch):
    path = write_json(tmp_path / "x.json", {"a": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_file(path, "{}")
    assert read_json(path) == {"a": 1} and [entry.name for entry in tmp_path.iterdir()] == ["x.json"]
