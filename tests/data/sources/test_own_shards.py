"""Tar shards and Parquet files as people have them: foreign members, samples of one name, members out of order, flipped bits."""

import io
import os
import random
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imp_ds.config import DataSettings
from imp_ds.data.sources import labels, open_reader
from imp_ds.errors import UserError
from imp_ds.tasks import Source

TAR = Source(path="t", format="webdataset", vision="jpg", text="txt")


def pair(key: str, media: bytes = b"x", text: bytes = b"a dog") -> list[tuple[str, bytes]]:
    return [(f"{key}.jpg", media), (f"{key}.txt", text)]


def write_tar(path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def read(tmp_path):
    """What the rows of a shard hold, by key."""

    def read(members, source=TAR):
        write_tar(tmp_path / "t" / "train-0.tar", members)
        reader = open_reader(tmp_path, source, "train", DataSettings(cache_dir=str(tmp_path / "cache")))
        found = {}
        for row in range(len(reader)):
            sample = reader.read(row)
            with sample["vision"].open() as file:
                found.setdefault(reader.key(row).rpartition("/")[2], []).append((file.read(), sample["text"]))
        return found, reader.damage

    return read


GOOD = [*pair("1"), *pair("2", b"y")]
ROWS = {"1": [(b"x", ["a dog"])], "2": [(b"y", ["a dog"])]}


@pytest.mark.parametrize(
    "members",
    [
        [entry for name, data in GOOD for entry in ((f"._{name}", b"\0\5\x16\7"), (name, data))],
        [(".DS_Store", b"x"), *GOOD], [("README.md", b"hi"), *GOOD], [*GOOD, ("LICENSE", b"mit")],
        [("__meta.json", b"{}"), *GOOD],
        [*GOOD[:2], ("__MACOSX/._1.jpg", b"x"), *GOOD[2:]], [("./.hidden/3.jpg", b"x"), *GOOD], [("notes", b"x"), *GOOD],
    ],
)  # fmt: skip
def test_foreign_members_are_no_samples(read, members):
    assert read(members) == (ROWS, [])


def test_samples_of_one_name_are_each_read_and_reported(read):
    found, damage = read([*pair("1", b"first"), *pair("1", b"second"), *pair("2", b"y")])
    assert [media for media, _ in found["1"]] == [b"first", b"second"] and found["2"] == ROWS["2"]
    assert len(damage) == 1 and "several samples side by side are called 1; each is read" in damage[0]


def test_members_out_of_order_say_sort_the_tar(read):
    members = [(f"{key}.{kind}", b"x") for kind in ("jpg", "txt") for key in (1, 2, 3)]
    with pytest.raises(UserError, match="do not stand together\n  got: +1, with others in between\n.*sort the tar"):
        read(members)
    assert read([*GOOD, *pair("1")])[0]["1"] == [(b"x", ["a dog"])] * 2  # a whole sample again, far off


def test_a_flipped_bit_in_an_index_is_found_and_the_index_made_anew(read, tmp_path):
    source = TAR.model_copy(update={"text": "json.caption"})
    members = [(f"{key}.{kind}", b'{"caption": "a dog"}') for key in range(20) for kind in ("jpg", "json")]
    first = read(members, source)
    index, draw = tmp_path / "t" / "train-0.tar.idx", random.Random(0)
    for _ in range(60):
        full = bytearray(index.read_bytes())
        full[draw.randrange(len(full))] ^= 1 << draw.randrange(8)
        index.write_bytes(full)
        reader = open_reader(tmp_path, source, "train", DataSettings(cache_dir=str(tmp_path / "cache")))
        assert [reader.read(row)["text"] for row in range(len(reader))] == [["a dog"]] * 20
    assert read(members, source) == first


def test_a_damaged_index_in_the_cache_is_made_anew(tmp_path, capfd):
    (tmp_path / "f" / "train").mkdir(parents=True)
    (tmp_path / "f" / "train" / "a.txt").write_text("one\ntwo\nthree\n")
    source, settings = Source(path="f", text="text"), DataSettings(cache_dir=str(tmp_path / "cache"))
    open_reader(tmp_path, source, "train", settings)
    (index,) = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size]
    full = bytearray(index.read_bytes())
    full[-12] ^= 4  # where a line begins
    index.write_bytes(full)
    reader = open_reader(tmp_path, source, "train", settings)
    assert [reader.read(row)["text"] for row in range(3)] == [["one"], ["two"], ["three"]]
    assert "is damaged" in capfd.readouterr().err


def test_parquet_with_a_column_twice_nested_columns_and_labels_of_any_number(tmp_path):
    (tmp_path / "p").mkdir()
    settings = DataSettings(cache_dir=str(tmp_path / "cache"))
    meta = [{"a": {"text": "one", "n": 1}}, {"a": {"text": "two", "n": 0}}]
    table = pa.table({"meta": meta, "score": [1.0, 2.0], "yes": [True, False]})
    pq.write_table(table, tmp_path / "p" / "train-0.parquet")
    for label, expected in (("meta.a.n", [1, 0]), ("score", [1, 2]), ("yes", [1, 0])):
        reader = open_reader(tmp_path, Source(path="p", format="parquet", text="meta.a.text", label=label), "train", settings)
        assert [reader.read(row)["text"] for row in range(2)] == [["one"], ["two"]] and labels(reader).tolist() == expected
    with pytest.raises(UserError, match="lacks a column\n.*'mta.a'\n.*did you mean meta"):
        open_reader(tmp_path, Source(path="p", format="parquet", text="mta.a"), "train", settings)
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(twice, tmp_path / "p" / "train-0.parquet")
    os.utime(tmp_path / "p" / "train-0.parquet", (1, 1))
    with pytest.raises(UserError, match="has a column twice\n.*'text'"):
        open_reader(tmp_path, Source(path="p", format="parquet", text="text"), "train", settings)
