"""Parquet files, tar shards and data sets of Hugging Face: what is read, from where, and every way in which it can be wrong."""

import io
import json
import os
import pickle
import shutil
import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from imp_ds.config import DataSettings
from imp_ds.data.corpus import open_corpus
from imp_ds.data.files.storage import Storage
from imp_ds.data.sources import captions, has_split, labels, open_reader
from imp_ds.data.sources.tar.headers import members
from imp_ds.data.sources.tar.index import open_index, short_text
from imp_ds.errors import UserError
from imp_ds.modalities.media import BadSample
from imp_ds.tasks import Source

datasets.disable_progress_bars()
NOBODY = 65534


@pytest.fixture
def settings(tmp_path):
    return SimpleNamespace(cache_dir=str(tmp_path / "cache"), cache_gb=1.0, retries=0, window=1024)


def picture(value):
    out = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(out, "PNG")
    return out.getvalue()


def shade(media):
    with media.open() as file:
        return Image.open(file).getpixel((0, 0))[0]


def rows(count, start=0):
    return [
        dict(image=dict(bytes=picture(i), path=f"{i}.png"), caption=f"number {i}", label=i % 3)
        for i in range(start, start + count)
    ]


# --- Parquet


PARQUET = Source(path="p", format="parquet", vision="image", text="caption", label="label")


def write_parquet(folder, *parts, group=4, name="train-{}.parquet"):
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(parts):
        pq.write_table(pa.Table.from_pylist(part), folder / name.format(number), row_group_size=group)


def test_row_groups_are_shards_and_any_row_is_read_by_its_place(tmp_path, settings):
    write_parquet(tmp_path / "p", rows(10), rows(3, 10))
    reader = open_reader(tmp_path, PARQUET, "train", settings)
    assert len(reader) == 13 and reader.shard_rows.tolist() == [4, 4, 2, 3] and reader.name == "p[train]"
    assert next(captions(reader)) == "number 0"  # what is read for captions alone is not taken for whole rows
    for row in (12, 0, 9, 4, 11):
        sample = reader.read(row)
        assert shade(sample["vision"]) == row and sample["text"] == [f"number {row}"] and sample["label"] == row % 3
        assert sample["vision"].suffix == ".png"
    assert labels(reader).tolist() == [i % 3 for i in range(13)]
    assert list(captions(reader)) == [f"number {i}" for i in range(13)]
    assert [reader.key(row) for row in (0, 9, 10)] == ["train-0.parquet/0", "train-0.parquet/9", "train-1.parquet/0"]
    copy = pickle.loads(pickle.dumps(reader))
    assert shade(copy.read(7)["vision"]) == 7
    with pytest.raises(UserError, match="no shards of the split validation"):
        open_reader(tmp_path, PARQUET, "validation", settings)
    assert has_split(tmp_path, PARQUET, "train") and not has_split(tmp_path, PARQUET, "test")


def test_plain_bytes_and_names_of_files_in_parquet(tmp_path, settings):
    folder = tmp_path / "p"
    write_parquet(folder, [dict(image=picture(7), caption="a", label=0)], name="bytes-{}.parquet")
    write_parquet(folder, [dict(image="x.png", caption="a", label=0), dict(image="../x.png", caption="a", label=0)],
                  name="names-{}.parquet")  # fmt: skip
    (folder / "x.png").write_bytes(picture(9))
    source = PARQUET.model_copy(update={"splits": {"train": "bytes-*.parquet", "test": "names-*.parquet"}})
    media = open_reader(tmp_path, source, "train", settings).read(0)["vision"]
    assert shade(media) == 7 and media.suffix == ".png"  # given by the first bytes
    named = open_reader(tmp_path, source, "test", settings)
    assert shade(named.read(0)["vision"]) == 9
    with pytest.raises(BadSample, match="unsafe name"):
        named.read(1)


def test_bad_rows_of_parquet_are_bad_samples(tmp_path, settings):
    good = rows(1)[0]
    gone = dict(bytes=None, path="gone.png")
    changes = [dict(image=None), dict(caption=None), dict(caption="  "), dict(label=-1), dict(image=gone)]
    write_parquet(tmp_path / "p", [good, *({**good, **change} for change in changes), good])
    reader = open_reader(tmp_path, PARQUET, "train", settings)
    reasons = []
    for row in range(1, 6):
        with pytest.raises(BadSample) as error:
            reader.read(row)
        reasons.append(error.value.reason)
    assert reasons == ["empty", "no text", "no text", "no such class", "missing file"]


@pytest.mark.parametrize(
    "change, match",
    [(dict(text="title"), "lacks a column\n.*'title'\n.*image, caption, label"), (dict(path="q"), "no shards|not exist")],
)
def test_mistakes_in_the_source_are_reported_at_once(tmp_path, settings, change, match):
    write_parquet(tmp_path / "p", rows(2))
    with pytest.raises(UserError, match=match):
        open_reader(tmp_path, PARQUET.model_copy(update=change), "train", settings)


def test_what_is_no_parquet_is_named(tmp_path, settings):
    (tmp_path / "p").mkdir()
    (tmp_path / "p/train-0.parquet").write_bytes(b"hello" * 100)
    with pytest.raises(UserError, match="not Parquet"):
        open_reader(tmp_path, PARQUET, "train", settings)


def test_parquet_on_a_remote_file_system(tmp_path, settings):
    write_parquet(tmp_path / "p", rows(5))
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/p/train-0.parquet", (tmp_path / "p/train-0.parquet").read_bytes())
    try:
        reader = open_reader("memory://bucket", PARQUET, "train", settings)
        assert [shade(reader.read(row)["vision"]) for row in range(5)] == list(range(5))
    finally:
        memory.rm("/bucket", recursive=True)


# --- tar shards


TAR = Source(path="t", format="webdataset", vision="jpg;png", text="json.caption", label="cls")


def add(tar, name, data=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(data))


def add_sample(tar, i, key=None, **changes):
    key = key or f"folder/{i:04d}"
    fields = {"png": picture(i), "json": json.dumps(dict(caption=f"number {i}")).encode(), "cls": str(i % 3).encode(), **changes}
    for extension, data in fields.items():
        if data is not None:
            add(tar, f"{key}.{extension}", data)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_with_one_name_are_a_sample(tmp_path, settings, form):
    (tmp_path / "t").mkdir()
    for shard in (0, 1):
        with tarfile.open(tmp_path / f"t/train-{shard:05d}.tar", "w", format=form) as tar:
            for i in range(shard * 3, shard * 3 + 3):
                add_sample(tar, i, key=f"{'long/' * 30 if form != tarfile.USTAR_FORMAT else ''}{i:04d}")
    reader = open_reader(tmp_path, TAR, "train", settings)
    assert reader.shard_rows.tolist() == [3, 3]
    for row in (5, 0, 3):
        sample = reader.read(row)
        assert shade(sample["vision"]) == row and sample["text"] == [f"number {row}"] and sample["label"] == row % 3
        assert sample["vision"].suffix == ".png"
    assert reader.key(4).endswith("0004") and reader.key(4).startswith("train-00001.tar/")
    assert (tmp_path / "t/train-00001.tar.idx").is_file()
    copy = pickle.loads(pickle.dumps(reader))
    assert shade(copy.read(2)["vision"]) == 2


def test_short_texts_stand_in_the_index(tmp_path):
    """Up to seven bytes, whatever they are; longer texts and media are read from the shard."""
    short = {"cls": b"7", "txt": b"", "left.cls": "größe".encode(), "id": b"\0" + 6 * b"\xff"}
    members = {**short, "text": b"8 bytes.", "png": b"7 bytes"}
    path = tmp_path / "train-0.tar"
    with tarfile.open(path, "w") as tar:
        for extension, data in members.items():
            add(tar, f"a.{extension}", data)
    found = open_index(Storage(), Storage().file(str(path))).sample(0).members
    assert {extension: size for extension, (_, size) in found.items()} == {name: len(data) for name, data in members.items()}
    assert {extension: short_text(*place) for extension, place in found.items() if place[0] < 0} == short
    shard = path.read_bytes()
    for extension in ("text", "png"):
        offset, size = found[extension]
        assert shard[offset : offset + size] == members[extension]


def test_an_index_is_made_again_for_another_shard(tmp_path, settings):
    (tmp_path / "t").mkdir()
    path = tmp_path / "t/train-0.tar"
    for count in (2, 5):
        with tarfile.open(path, "w") as tar:
            for i in range(count):
                add_sample(tar, i)
        assert len(open_reader(tmp_path, TAR, "train", settings)) == count
    (tmp_path / "t/train-0.tar.idx").write_bytes(b"torn")
    assert len(open_reader(tmp_path, TAR, "train", settings)) == 5
    (tmp_path / "t/train-0.tar.idx").unlink()
    (tmp_path / "t").chmod(0o555)
    try:
        assert len(open_reader(tmp_path, TAR, "train", settings)) == 5
        assert not (tmp_path / "t/train-0.tar.idx").exists()  # a folder that is closed stays as it is
    finally:
        (tmp_path / "t").chmod(0o755)


@pytest.fixture
def unprivileged():
    """What follows runs as a user who may write nothing of ours: root, who may write everywhere, becomes nobody meanwhile. The
    folder is outside of pytest's, which is closed to others."""
    folder = Path(tempfile.mkdtemp())
    (folder / "cache").mkdir(mode=0o755)

    @contextmanager
    def nobody():
        os.chmod(folder, 0o755)
        os.chown(folder / "cache", NOBODY, NOBODY)
        os.seteuid(NOBODY)
        try:
            yield
        finally:
            os.seteuid(0)

    yield folder, nobody
    shutil.rmtree(folder)


@pytest.mark.parametrize("index", ["none", "damaged", "closed"])
def test_where_the_data_may_not_be_written_the_index_is_in_the_cache(unprivileged, index):
    """A folder of somebody else, who left no index, a damaged one, or one that is closed to others."""
    if os.geteuid():
        pytest.skip("only root can own a folder that this user may not write, though its owner may")
    folder, nobody = unprivileged
    for name in ("warm", "t"):
        (folder / name).mkdir()
        with tarfile.open(folder / name / "train-0.tar", "w") as tar:
            for i in range(3):
                add_sample(tar, i)
    settings = SimpleNamespace(cache_dir=str(folder / "cache"), cache_gb=1.0, retries=0, window=1024)
    warm = SimpleNamespace(**vars(settings) | {"cache_dir": str(folder / "another")})
    open_reader(folder, TAR.model_copy(update={"path": "warm"}), "train", warm).read(0)  # imports what nobody may not read
    beside = folder / "t/train-0.tar.idx"
    if index != "none":
        beside.write_bytes(b"torn")
        beside.chmod(0o644 if index == "damaged" else 0o600)
    files = lambda: sorted(path.name for path in (folder / "t").iterdir())  # noqa: E731
    before = files()
    with nobody():
        with pytest.raises(PermissionError):
            (folder / "t/x").touch()
        for _ in range(2):  # made, then found
            reader = open_reader(folder, TAR, "train", settings)
            assert [reader.read(row)["label"] for row in range(3)] == [0, 1, 2]
    assert files() == before


def bad_tar(path):
    """Nine samples, of which 0 and 8 are good."""
    with tarfile.open(path, "w") as tar:
        add_sample(tar, 0)
        add_sample(tar, 1, json=b"{not json")
        add_sample(tar, 2, cls=b"dog")
        add_sample(tar, 3, png=None)
        add_sample(tar, 4, json=b"[1]")
        add(tar, "folder/0005.png", type=tarfile.SYMTYPE, linkname="/etc/hostname")
        add_sample(tar, 6, key="../0006")
        add_sample(tar, 7, png=b"")
        add_sample(tar, 8)


def test_bad_samples_of_a_tar_are_reported_one_by_one(tmp_path, settings):
    (tmp_path / "t").mkdir()
    bad_tar(tmp_path / "t/train-0.tar")
    reader = open_reader(tmp_path, TAR, "train", settings)
    reasons = []
    for row in range(len(reader)):
        try:
            reader.read(row)["vision"].open().close()
            reasons.append(None)
        except BadSample as error:
            reasons.append(error.reason)
    assert reasons == [
        None, "bad JSON", "wrong column", "missing column", "bad JSON", "unsafe name", "unsafe name", "empty", None
    ]  # fmt: skip


def four_samples(folder):
    """A shard of four pictures."""
    (folder / "t").mkdir()
    path = folder / "t/train-0.tar"
    with tarfile.open(path, "w") as tar:
        for i in range(4):
            add_sample(tar, i, png=picture(i) + bytes(2000))
    return path


def test_a_tar_that_was_cut_has_its_complete_samples(tmp_path, settings):
    path = four_samples(tmp_path)
    with tarfile.open(path) as tar:
        inside = next(m.offset_data + 100 for m in tar if m.name == "folder/0003.png")
    path.write_bytes(path.read_bytes()[:inside])
    reader = open_reader(tmp_path, TAR, "train", settings)
    assert [shade(reader.read(row)["vision"]) for row in range(3)] == [0, 1, 2]
    with pytest.raises(BadSample, match="cut off"):
        reader.read(3)
    [damage] = reader.damage
    assert "train-0.tar: cut off after 3 samples (folder/0003)" in damage


def test_a_tar_with_a_damaged_header_has_what_comes_before_it(tmp_path, settings):
    path = four_samples(tmp_path)
    with tarfile.open(path) as tar:
        header = next(m.offset for m in tar if m.name == "folder/0002.png")
    data = bytearray(path.read_bytes())
    data[header : header + 3] = b"???"
    path.write_bytes(data)
    reader = open_reader(tmp_path, TAR, "train", settings)
    assert [shade(reader.read(row)["vision"]) for row in range(2)] == [0, 1]
    [damage] = reader.damage
    assert "cut off after 2 samples (after folder/0001: there is no tar header at byte" in damage


def test_headers_are_read_as_tarfile_reads_them(tmp_path):
    """Long names, folders, links, empty files and a name of 99 letters, in all three formats."""
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{form}.tar"
        with tarfile.open(path, "w", format=form) as tar:
            add(tar, "folder", type=tarfile.DIRTYPE)
            for name in ("a.txt", "x" * 99, "d/" * 60 + "b.txt", "ü/ä.txt"):
                add(tar, name, b"1" * (len(name) * 7))
            add(tar, "link", type=tarfile.SYMTYPE, linkname="a.txt")
            add(tar, "empty.txt")
        with tarfile.open(path) as tar, open(path, "rb") as file:
            expected = [(m.name, m.offset_data, m.size, m.isfile()) for m in tar if not m.isdir()]
            found = [(m.name, m.offset, m.size, m.kind == "file") for m in members(file.fileno()) if m.kind != "folder"]
        assert found == expected


def test_no_command_is_run_for_a_tar(tmp_path, settings):
    for path in (f"pipe:touch {tmp_path}/ran", "pipe:cat train.tar"):
        with pytest.raises(UserError, match="unknown protocol"):
            open_reader(tmp_path, TAR.model_copy(update={"path": path}), "train", settings)
    assert not (tmp_path / "ran").exists()


def test_tar_shards_on_a_remote_file_system(tmp_path, settings):
    (tmp_path / "t").mkdir()
    with tarfile.open(tmp_path / "t/train-0.tar", "w") as tar:
        for i in range(3):
            add_sample(tar, i)
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/t/train-0.tar", (tmp_path / "t/train-0.tar").read_bytes())
    try:
        reader = open_reader("memory://bucket", TAR, "train", settings)
        assert [shade(reader.read(row)["vision"]) for row in (2, 0)] == [2, 0]
        assert len(open_reader(f"file://{tmp_path}", TAR, "train", settings)) == 3
    finally:
        memory.rm("/bucket", recursive=True)


def test_texts_of_classes_by_templates(tmp_path, settings):
    (tmp_path / "t").mkdir()
    with tarfile.open(tmp_path / "t/train-0.tar", "w") as tar:
        for i in range(3):
            add_sample(tar, i)
    (tmp_path / "t/names.json").write_text('["cat", "dog", "owl"]')
    source = TAR.model_copy(update=dict(text=None, label_names="names.json", templates=["a {}", "the {} here"]))
    reader = open_reader(tmp_path, source, "train", settings)
    assert reader.read(1)["text"] == ["a dog", "the dog here"] and reader.class_names == ["cat", "dog", "owl"]


# --- data sets of Hugging Face


FACE = Source(path="saved", format="huggingface", vision="image", text="caption", label="label")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """saved/: by save_to_disk, with train and test; files/: Parquet; lines/: two JSON files; tars/: a shard."""
    folder = tmp_path_factory.mktemp("hub")
    features = datasets.Features(
        dict(image=datasets.Image(), caption=datasets.Value("string"), label=datasets.ClassLabel(names=["cat", "dog", "owl"]))
    )
    pictures = [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(9)]
    full = datasets.Dataset.from_list([{**row, "image": one} for row, one in zip(rows(9), pictures)], features)
    datasets.DatasetDict(train=full, test=full.select(range(2))).save_to_disk(folder / "saved")
    (folder / "files").mkdir()
    full.to_parquet(folder / "files/train-0.parquet")
    (folder / "lines").mkdir()
    for part in (0, 1):
        lines = (json.dumps(dict(caption=f"{part} {i}", label=i % 3)) + "\n" for i in range(4 + part))
        (folder / f"lines/train-{part}.jsonl").write_text("".join(lines))
    return folder


@pytest.mark.parametrize("change", [dict(), dict(path="files"), dict(path="files", streaming=True)])
def test_a_data_set_by_path(hub, settings, change):
    reader = open_reader(hub, FACE.model_copy(update=change), "train", settings)
    assert len(reader) == 9 and reader.class_names == ["cat", "dog", "owl"]
    for row in (8, 0, 4):
        sample = reader.read(row)
        assert shade(sample["vision"]) == row and sample["text"] == [f"number {row}"] and sample["label"] == row % 3
    assert labels(reader).tolist() == [i % 3 for i in range(9)]
    copy = pickle.loads(pickle.dumps(reader))
    assert copy.read(3)["text"] == ["number 3"] and copy.key(3) == reader.key(3)


@pytest.mark.parametrize("streaming", [False, True])
def test_other_files_are_streamed_shard_by_shard(hub, settings, streaming):
    source = Source(path="lines", format="huggingface", text="caption", label="label", streaming=streaming)
    expected = [f"0 {i}" for i in range(4)] + [f"1 {i}" for i in range(5)]
    reported = []
    reader = open_reader(hub, source, "train", settings, lambda *what: reported.append(what))
    assert [reader.read(row)["text"][0] for row in (8, 0, 4)] == [expected[8], expected[0], expected[4]]
    assert list(captions(reader)) == expected
    assert reader.shard_rows.tolist() == ([4, 5] if streaming else [9])
    assert reported == ([("counting lines[train], shards", n, 2) for n in (1, 2)] if streaming else [])
    again = open_reader(hub, source, "train", settings)
    assert again.read(8)["text"] == ["1 4"] and np.array_equal(again.shard_rows, reader.shard_rows)


def test_splits_that_are_not_there(hub, settings):
    assert has_split(hub, FACE, "test") and not has_split(hub, FACE, "validation")
    with pytest.raises(UserError, match="no split validation"):
        open_reader(hub, FACE, "validation", settings)
    renamed = FACE.model_copy(update={"splits": {"validation": "test"}})
    assert len(open_reader(hub, renamed, "validation", settings)) == 2
    with pytest.raises(UserError, match="missing column"):
        open_reader(hub, FACE.model_copy(update={"text": "title"}), "train", settings)


@pytest.fixture
def no_hub(monkeypatch):
    """No call that may ask a hub is made."""

    def asked(*_, **__):
        raise AssertionError("a hub was asked")

    for name in ("get_dataset_split_names", "load_dataset", "load_dataset_builder"):
        monkeypatch.setattr(datasets, name, asked)


@pytest.mark.parametrize("root, path, words", [
    ("missing", "saved", "data.root is not there"), ("missing", "user/birds", "data.root is not there"),
    ("a_file", "saved", "data.root is no folder"), ("", "sets/birds/v1", r"(?s)no name of a hub.*in data.root: .*saved"),
])  # fmt: skip
def test_a_wrong_root_is_said_before_a_hub_is_asked(hub, settings, no_hub, root, path, words):
    (hub / "a_file").write_text("x")
    for ask in (lambda source: has_split(hub / root, source, "train"), lambda s: open_reader(hub / root, s, "train", settings)):
        with pytest.raises(UserError, match=words):
            ask(FACE.model_copy(update={"path": path}))


def test_a_hub_is_asked_where_the_root_is_right_or_not_set(hub, settings, no_hub):
    for root in (hub, DataSettings().root):
        with pytest.raises(AssertionError, match="a hub was asked"):
            open_reader(root, FACE.model_copy(update={"path": "user/birds"}), "train", settings)


def test_a_root_without_any_of_the_sets_is_said_before_a_hub_is_asked(hub, no_hub):
    on_hub, here = FACE.model_copy(update={"path": "user/birds"}), Source(path="photos", vision="file_name", label="label")
    tasks = [SimpleNamespace(name=name, sources=[source]) for name, source in (("first", on_hub), ("second", here))]
    with pytest.raises(UserError, match="photos.* does not exist"):
        open_corpus(SimpleNamespace(tasks=tasks, data=DataSettings(root=str(hub))))


def test_metadata_nested_deep_names_no_classes(tmp_path, settings):
    """As `datasets` would have written them, but 100,000 lists deep."""
    table = pa.table({"caption": ["a", "b"], "label": [0, 1]}).replace_schema_metadata({"huggingface": "[" * 100_000})
    pq.write_table(table, tmp_path / "train.parquet")
    source = Source(path="train.parquet", format="parquet", text="caption", label="label")
    reader = open_reader(tmp_path, source, "train", settings)
    assert reader.class_names is None and labels(reader).tolist() == [0, 1]
