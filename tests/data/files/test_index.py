"""Indexes on disk: what is written is mapped again, by us and by safetensors, and nothing else is taken for one."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from imp_ds.data.files.index import Index, IndexWriter


def write(path):
    writer = IndexWriter(path, small="uint8", large="int64", middle="int32", empty="uint16")
    writer.append("small", [1, 2, 3])
    writer.append("large", [2**40])
    writer.append("small", [4])
    writer.append("large", np.arange(2))
    writer.append("middle", [-7])
    writer.close(version="1")
    return path


def test_columns_come_back(tmp_path):
    index = Index(open(write(tmp_path / "i"), "rb"))
    assert index.facts == {"version": "1"}
    assert {name: column[:].tolist() for name, column in index.columns.items()} == dict(
        large=[2**40, 0, 1], middle=[-7], empty=[], small=[1, 2, 3, 4]
    )
    large = index.columns["large"]
    assert large[0] == 2**40 and large[0].dtype == np.int64 and large[1:].tolist() == [0, 1] and large[2:2].tolist() == []
    assert len(large) == 3
    held = large.held()
    (tmp_path / "i").write_bytes(b"")
    assert held[:].tolist() == [2**40, 0, 1] and held[1:2].tolist() == [0] and len(held) == 3 and held.bytes == 24
    for column in (large, held):
        for outside in (3, -1):
            with pytest.raises(IndexError):
                column[outside]
    with pytest.raises(OSError, match="shorter"):
        large[1]


def test_safetensors_reads_it(tmp_path):
    loaded = load_file(write(tmp_path / "i"))
    assert {name: (column.tolist(), column.dtype.name) for name, column in loaded.items()} == dict(
        large=([2**40, 0, 1], "int64"), middle=([-7], "int32"), empty=([], "uint16"), small=([1, 2, 3, 4], "uint8")
    )


def header(**entry):
    text = json.dumps({"__metadata__": {}, "a": entry}).encode()
    return len(text).to_bytes(8, "little") + text + b"12345678"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"short",
        b"\xff" * 100,
        (100).to_bytes(8, "little") + b"{",
        (2).to_bytes(8, "little") + b"[]",
        header(dtype="I64", shape=[2], data_offsets=[0, 16]),  # more than is there
        header(dtype="I64", shape=[1], data_offsets=[-8, 0]),
        header(dtype="I64", shape=[-1], data_offsets=[0, 8]),
        header(dtype="F64", shape=[1], data_offsets=[0, 8]),
        header(dtype="I64", shape=["1"], data_offsets=[0, 8]),
        header(dtype="I64"),
    ],
)
def test_what_is_no_index_is_refused(data, tmp_path):
    (tmp_path / "i").write_bytes(data)
    with pytest.raises(ValueError, match="index"):
        Index(open(tmp_path / "i", "rb"))
