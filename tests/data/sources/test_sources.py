"""Folders of media: what is read, and every way in which a row or the whole can be wrong."""

import json
import math
import pickle
import shutil
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
from PIL import Image

from imp_ds.data.files import storage
from imp_ds.data.sources import captions, has_split, labels, open_reader
from imp_ds.errors import UserError
from imp_ds.modalities.media import BadSample
from imp_ds.tasks import Source

SOURCE = Source(path="images", vision="file_name", text="captions", label="label")
GOOD = dict(file_name="a.png", label=3, captions=["a", "b"])


@pytest.fixture
def settings(tmp_path):
    return SimpleNamespace(cache_dir=str(tmp_path / "cache"), cache_gb=1.0, retries=0, window=1024)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images" / "train"
    folder.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    return folder


@pytest.fixture
def load(folder, settings):
    def open_it(source=SOURCE, root=folder.parent.parent, split="train", **changes):
        return open_reader(root, source.model_copy(update=changes), split, settings)

    return open_it


def write(folder, *rows, name="metadata.jsonl"):
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    (folder / name).write_text(text, encoding="utf-8")


# --- metadata.jsonl


def test_rows_by_role(folder, load):
    write(folder, GOOD, "", dict(GOOD, label=4, captions="only one", extra=1.5))
    reader = load()
    assert reader.name == "images[train]" and len(reader) == 2 and reader.shard_rows.tolist() == [2]
    sample = reader.read(1)
    assert sample.pop("vision").path == folder / "a.png"
    assert sample == dict(text=["only one"], label=4)
    assert labels(reader).tolist() == [3, 4] and labels(reader).dtype == np.int64
    assert list(captions(reader)) == ["a", "b", "only one"]
    assert reader.key(1) == "a.png" and reader.class_names is None
    again = pickle.loads(pickle.dumps(reader))
    assert again.read(1)["label"] == 4 and again.read(0)["vision"].path == folder / "a.png"


def test_only_the_columns_that_are_named_are_read(folder, load):
    write(folder, dict(file_name="a.png"))
    assert load(Source(path="images", vision="file_name")).read(0).keys() == {"vision"}
    assert load(SOURCE.model_copy(update=dict(text=None, label=None))).read(0).keys() == {"vision"}


@pytest.mark.parametrize(
    "row, reason, words",
    [
        ("{broken", "bad JSON", ["row 2", "{broken"]),
        ("[1]", "bad JSON", ["a list", "an object"]),
        ("[" * 100_000, "bad JSON", ["row 2"]),
        (dict(file_name="a.png", caption="x", label=1), "missing column", ["row 2", "'captions'", "file_name, caption, label"]),
        (dict(GOOD, label="3"), "wrong column", ["label_names", "'3'"]),
        (dict(GOOD, label=math.nan), "no label", ["row 2"]),
        (dict(GOOD, label=1.5), "wrong column", ["class index"]),
        (dict(GOOD, label=-1), "no such class", ["-1"]),
        (dict(GOOD, captions=[]), "no text", ["row 2"]),
        (dict(GOOD, captions=[" ", ""]), "no text", ["row 2"]),
        (dict(GOOD, captions=None), "no text", ["row 2"]),
        (dict(GOOD, captions=["\u200b", None]), "no text", ["row 2"]),
        (dict(GOOD, captions=["a", 7]), "wrong column", ["caption"]),
        (dict(GOOD, captions=[None, "\u200b", "\x01"]), "no text", ["row 2"]),
        (dict(GOOD, captions=7), "wrong column", ["caption"]),
        (dict(GOOD, file_name=None), "wrong column", ["not a file name"]),
        (dict(GOOD, file_name="/etc/passwd"), "unsafe name", ["/etc/passwd"]),
        (dict(GOOD, file_name="x/../../a.png"), "unsafe name", ["x/../../a.png"]),
        (dict(GOOD, file_name="..\\a.png"), "unsafe name", []),
        (dict(GOOD, file_name="C:a.png"), "unsafe name", []),
        (dict(GOOD, file_name="http://host/a.png"), "unsafe name", []),
        (dict(GOOD, file_name="a\0.png"), "unsafe name", []),
        (dict(GOOD, file_name="gone.png"), "missing file", ["gone.png"]),
        (dict(GOOD, file_name="x" * 5000), "missing file", []),
    ],
)
def test_a_bad_row_is_left_to_the_loader_and_named(folder, load, row, reason, words):
    write(folder, GOOD, row, GOOD)
    reader = load()
    with pytest.raises(BadSample) as error:
        reader.read(1)
    assert error.value.reason == reason and reader.key(1)
    for word in words:
        assert word in error.value.detail
    assert reader.read(2)["label"] == 3  # the others are as before


def test_a_bad_row_has_a_key_that_others_do_not_change(folder, load):
    write(folder, GOOD, "{broken", GOOD)
    before = load().key(1)
    write(folder, GOOD, GOOD, "{broken", GOOD)
    assert load().key(2) == before != load().key(1)


def test_labels_and_captions_pass_over_what_cannot_be_read(folder, load):
    write(folder, GOOD, "{broken", dict(GOOD, label=None), dict(GOOD, captions=[], label=5), GOOD)
    reader = load()
    assert labels(reader).tolist() == [3, -1, -1, 5, 3]
    assert list(captions(reader)) == ["a", "b"] * 3


def test_bytes_that_are_not_utf8(folder, load):
    good = json.dumps(GOOD).encode()
    (folder / "metadata.jsonl").write_bytes(good + b'\n{"file_name": "\xff.png", "label": 1, "captions": "x"}\n' + good)
    with pytest.raises(BadSample, match="bad JSON"):
        load().read(1)


def test_links_may_not_lead_out(folder, load, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"x")
    (folder.parent / "train2").mkdir()
    (folder.parent / "train2" / "b.png").write_bytes(b"x")
    (folder / "out.png").symlink_to(tmp_path / "secret.png")
    (folder / "beside.png").symlink_to(folder.parent / "train2" / "b.png")  # a folder whose name begins alike
    (folder / "in.png").symlink_to(folder / "a.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    write(folder, GOOD, *(dict(GOOD, file_name=name) for name in ("in.png", "out.png", "beside.png", "loop.png")), GOOD)
    reader = load()
    assert reader.read(1)["vision"].path.read_bytes() == (folder / "a.png").read_bytes()
    for row, words in ((2, "unsafe name.*media_root"), (3, "unsafe name.*media_root"), (4, "missing file")):
        with pytest.raises(BadSample, match=words):
            reader.read(row)


def test_an_empty_file(folder, load):
    write(folder, GOOD, dict(GOOD, file_name="empty.png"), GOOD)
    (folder / "empty.png").write_bytes(b"")
    with pytest.raises(BadSample, match="empty"):
        load().read(1)["vision"].open()


def test_rows_are_cut_into_runs(folder, load):
    write(folder, *[GOOD] * 10_000)
    assert load().shard_rows.tolist() == [4096, 4096, 1808]


def test_a_split_may_be_called_otherwise_and_be_files(folder, load):
    write(folder, GOOD, name="one.jsonl")
    write(folder, dict(GOOD, label=1), dict(GOOD, label=2), name="two.jsonl")
    reader = load(path="images/train", splits={"validation": "*.jsonl"}, split="validation")
    assert labels(reader).tolist() == [3, 1, 2] and reader.shard_rows.tolist() == [1, 2]
    write(folder, GOOD)
    assert len(load(splits={"test": "train"}, split="test")) == 1


# --- mistakes in the whole


def test_missing_folders_say_what_is_there(folder, load):
    write(folder, GOOD)
    with pytest.raises(UserError, match="nowhere does not exist(.|\n)*corpus digits DIR"):
        load(root=folder / "nowhere")
    with pytest.raises(UserError, match="in .*images: train"):
        load(split="test")
    with pytest.raises(UserError, match=r"in .*: images\n"):
        load(path="films")
    (folder / "metadata.jsonl").unlink()
    with pytest.raises(UserError, match="has no metadata.jsonl"):
        load()


def test_a_source_of_nothing_is_refused(folder, load):
    write(folder, GOOD)
    with pytest.raises(UserError, match="names no column"):
        load(Source(path="images"))


def test_no_rows(folder, load):
    write(folder)
    with pytest.raises(UserError, match=r"images\[train\] has no rows"):
        load()


def test_a_first_row_without_a_column_is_refused(folder, load):
    write(folder, dict(file_name="a.png", caption="x", label=1), GOOD)
    with pytest.raises(UserError, match="missing column(.|\n)*'captions'.*, but file_name, caption(.|\n)*source.text"):
        load()


GONE = dict(GOOD, file_name="gone.png")


@pytest.mark.parametrize("rows", [["{broken"], ["{broken", "[]"], [GONE, GONE], [dict(GOOD, label=1.5)]])
def test_a_corpus_of_which_neither_end_can_be_used_is_refused(rows, folder, load):
    write(folder, *rows)
    with pytest.raises(UserError, match="its samples cannot be read"):
        load()


@pytest.mark.parametrize("bad", ["{broken", GONE])
def test_one_bad_row_at_an_end_is_like_any_other(bad, folder, load):
    write(folder, bad, GOOD)
    assert labels(load()).tolist()[1] == 3
    write(folder, GOOD, bad)
    assert labels(load()).tolist()[0] == 3


def test_has_split(folder):
    write(folder, GOOD)
    root = folder.parent.parent
    assert has_split(root, SOURCE, "train") and not has_split(root, SOURCE, "test")
    assert has_split(root, SOURCE.model_copy(update=dict(splits={"test": "train"})), "test")
    assert not has_split(root / "nowhere", SOURCE, "train")


# --- classes and templates


def test_names_of_classes(folder, load):
    write(folder, *(dict(GOOD, label=label) for label in ("cat", "dog", "cow", 1, 2)))
    reader = load(label_names=["dog", "cat"])
    assert labels(reader).tolist() == [1, 0, -1, 1, -1] and reader.class_names == ["dog", "cat"]
    for row in (2, 4):
        with pytest.raises(BadSample, match="no such class"):
            reader.read(row)
    (folder.parent / "names.json").write_text('["cat", "dog"]')
    assert labels(load(label_names="names.json")).tolist() == [0, 1, -1, 1, -1]
    assert labels(load(label_names=str(folder.parent / "names.json"))).tolist() == [0, 1, -1, 1, -1]


@pytest.mark.parametrize(
    "text, words",
    [(None, "not there"), ("{", "not JSON"), ("{}", "a list"), ("[1]", "does not list"), ('["a", "a"]', "one name")],
)
def test_files_of_class_names_that_are_none(text, words, folder, load):
    write(folder, dict(GOOD, label=0))
    if text is not None:
        (folder.parent / "names.json").write_text(text)
    with pytest.raises(UserError, match=words):
        load(label_names="names.json")


def test_templates_speak_of_the_class(folder, load):
    write(folder, dict(file_name="a.png", label=1), dict(file_name="a.png", label="dog"), dict(file_name="a.png", label=7))
    reader = load(text=None, templates=["a {}.", "one {}, two {}"], label_names=["dog", "cat"])
    assert reader.read(0)["text"] == ["a cat.", "one cat, two cat"] and reader.read(0)["label"] == 1
    assert list(captions(reader)) == ["a cat.", "one cat, two cat", "a dog.", "one dog, two dog"]


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(templates=["a {}."]), "there are no class names"),
        (dict(templates=["a {}."], label=None, label_names=["a"]), "source.label names no column"),
        (dict(templates=["a thing"], label_names=["a", "b", "c", "d"]), "no place for the class name"),
    ],
)
def test_templates_that_cannot_be_filled(changes, words, folder, load):
    write(folder, GOOD)
    with pytest.raises(UserError, match=words):
        load(text=None, **changes)


# --- the other layouts


def test_metadata_csv(folder, load):
    rows = ["\ufefffile_name,label,captions", 'a.png,3,"one, two\nlines"', "", "a.png,cat,x", "a.png,4"]
    rows.append(f"a.png,dog,{'x' * 200_000}")
    write(folder, *rows, name="metadata.csv")
    reader = load(label_names=["dog", "cat", "cow", "hen"])
    assert len(reader) == 4 and reader.read(3)["text"] == ["x" * 200_000]
    assert reader.read(0)["text"] == ["one, two\nlines"] and reader.read(0)["vision"].path == folder / "a.png"
    assert labels(reader).tolist() == [3, 1, -1, 0]
    with pytest.raises(BadSample, match="missing column"):
        reader.read(2)


@pytest.mark.parametrize("row, where", [('a.png,0,"never closed', "lines 2 to 4"), ('a.png,0,"closed" late', "line 2")])
def test_a_quote_that_is_not_closed_swallows_no_rows(folder, load, row, where):
    write(folder, "file_name,label,captions", row, "a.png,0,one", "a.png,0,two", name="metadata.csv")
    with pytest.raises(UserError, match=f"metadata.csv is not CSV\n  got: .*{where}"):
        load()


def test_folders_of_classes(folder, load, tmp_path):
    for name in ("dog/b.png", "dog/a.png", "cat/c \u00e9.png", "cat/.hidden", "cat/deep/x.png", ".git/y.png"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(b"x")
    source = Source(path="images", vision="file_name", label="label", templates=["a {}"])
    reader = load(source)
    assert [reader.key(row) for row in range(len(reader))] == ["cat/c \u00e9.png", "dog/a.png", "dog/b.png"]
    assert reader.class_names == ["cat", "dog"] and labels(reader).tolist() == [0, 1, 1]
    assert reader.read(2)["vision"].path == folder / "dog" / "b.png" and reader.read(2)["text"] == ["a dog"]
    assert labels(load(source, label_names=["dog", "cat"])).tolist() == [1, 0, 0]
    assert labels(load(source, label_names=["cat"])).tolist() == [0, -1, -1]
    (folder / "cat" / "d.png").write_bytes(b"x")  # seen at the next opening
    assert len(load(source)) == 4 and len(pickle.loads(pickle.dumps(reader))) == 3
    (folder / "cat" / "c \u00e9.png").unlink()
    assert reader.key(0) == "cat/c \u00e9.png"
    with pytest.raises(BadSample, match="missing file"):
        reader.read(0)


def test_lines_of_text(folder, load):
    write(folder, "one", "", " two ", name="b.txt")
    write(folder, "zero", name="a.txt")
    (folder / "c.txt").write_bytes(b"\xff\nlast\n")
    reader = load(Source(path="images", text="text"))
    assert len(reader) == 5 and reader.shard_rows.tolist() == [1, 2, 2]
    assert list(captions(reader)) == ["zero", "one", "two", "last"]
    with pytest.raises(BadSample, match="not UTF-8"):
        reader.read(3)


# --- elsewhere


@pytest.fixture
def remote(folder):
    """The folder's content in the memory's file system."""
    system = fsspec.filesystem("memory")

    def upload():
        system.put(str(folder.parent), "/corpus/images", recursive=True)
        return "memory://corpus"

    yield upload
    system.rm("/corpus", recursive=True)


def test_a_folder_elsewhere(folder, load, remote):
    write(folder, GOOD, dict(GOOD, file_name="gone.png"), dict(GOOD, file_name="../x.png"), GOOD)
    root = remote()
    reader = load(root=root)
    assert reader.read(0)["vision"].open().read() == (folder / "a.png").read_bytes()
    assert reader.read(0)["vision"].suffix == ".png" and labels(reader).tolist() == [3] * 4
    with pytest.raises(BadSample, match="missing file"):
        reader.read(1)["vision"].open()
    with pytest.raises(BadSample, match="unsafe name"):
        reader.read(2)
    assert has_split(root, SOURCE, "train") and not has_split(root, SOURCE, "test")
    with pytest.raises(UserError, match="in memory.*images: train"):
        load(root=root, split="test")


def test_folders_of_classes_elsewhere(folder, load, remote):
    for name in ("dog", "cat"):
        (folder / name).mkdir()
        (folder / name / "a.png").write_bytes(name.encode())
    (folder / "a.png").unlink()
    root, source = remote(), Source(path="images", vision="file_name", label="label")
    reader = load(source, root=root)
    assert [reader.read(row)["vision"].open().read() for row in (0, 1)] == [b"cat", b"dog"]
    fsspec.filesystem("memory").pipe("/corpus/images/train/cat/b.png", b"new")
    assert len(load(source, root=root)) == 3


def test_what_cannot_be_reached(folder, load, remote, monkeypatch):
    write(folder, GOOD, GOOD)
    root = remote()
    reader = load(root=root)
    monkeypatch.setattr(storage, "time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr(storage, "_system", lambda address: (_ for _ in ()).throw(ConnectionError("no network")))
    assert reader.read(0)["vision"].open().read()  # copied before
    reader._named[0].stamp = "new"
    with pytest.raises(BadSample, match="unreachable.*no network"):
        reader.read(0)["vision"].open()
    with pytest.raises(UserError, match="cannot be reached(.|\n)*no network"):
        load(root=root)
    with pytest.raises(UserError, match="cannot be reached"):
        has_split(root, SOURCE, "train")


# --- own layouts: a table as the path, pairs, classes by name, files elsewhere, a held-out share


def test_a_table_given_as_the_path_names_files_beside_it(folder, load):
    for name, delimiter, fields in (("t.tsv", "\t", {}), ("t.csv", ",", {}), ("semi.csv", ";", {"delimiter": ";"})):
        rows = [("file_name", "animal"), ("a.png", "red fox"), ("a.png", "cow"), ("a.png", "red fox")]
        write(folder, *(delimiter.join(row) for row in rows), name=name)
        reader = load(Source(path=f"images/train/{name}", vision="file_name", label="animal", **fields))
        assert reader.class_names == ["cow", "red fox"] and labels(reader).tolist() == [1, 0, 1]
        assert reader.read(0)["vision"].path == folder / "a.png"
        with pytest.raises(UserError, match="has no split test(.|\n)*source.splits"):
            load(Source(path=f"images/train/{name}", vision="file_name", **fields), split="test")
    with pytest.raises(UserError, match="gone.csv has no split train(.|\n)*allowed: in .*train: semi.csv, t.csv, t.tsv\n"):
        load(Source(path="images/train/gone.csv", vision="file_name"))
    with pytest.raises(UserError, match="the data folder .*elsewhere does not exist"):
        load(Source(path="t.csv", vision="file_name"), root=folder / "elsewhere")


def test_a_file_that_is_no_table_is_said_to_be_none(folder, load):
    (folder / "rows.json").write_text('[{"file_name": "a.png"}]')
    with pytest.raises(UserError, match=r"no kind that is read so(.|\n)*\.jsonl, \.csv(.|\n)*jq .* .*rows\.json > .*rows\.jsonl"):
        load(Source(path="images/train/rows.json", vision="file_name"))


def test_class_names_are_those_of_the_training_split_in_every_split(folder, load):
    (folder.parent / "validation").mkdir()
    (folder.parent / "validation" / "a.png").write_bytes(b"x")
    write(folder, dict(file_name="a.png", kind="cow"), dict(file_name="a.png", kind="ant"))
    write(folder.parent / "validation", dict(file_name="a.png", kind="cow"), dict(file_name="a.png", kind="bee"))
    reader = load(Source(path="images", vision="file_name", label="kind"), split="validation")
    assert reader.class_names == ["ant", "cow"] and labels(reader).tolist() == [1, -1]
    with pytest.raises(BadSample, match="no such class.*bee"):
        reader.read(1)


def test_media_with_a_text_of_their_name_are_pairs(folder, load):
    (folder / "deep").mkdir()
    for name in ("b.jpg", "a.png", "deep/c.jpg", "alone.jpg", ".hidden.jpg"):
        (folder / name).write_bytes(b"x")
    for name, text in (("b", "two\n\ntoo"), ("a", "one"), ("deep/c", "\u200b"), (".hidden", "x"), ("no medium", "x")):
        (folder / f"{name}.txt").write_text(text)
    reader = pickle.loads(pickle.dumps(load(Source(path="images", vision="file_name", text="text"))))
    assert [reader.key(row) for row in range(len(reader))] == ["a.png", "b.jpg", "deep/c.jpg"]
    assert reader.read(1)["text"] == ["two", "too"] and reader.read(1)["vision"].path == folder / "b.jpg"
    with pytest.raises(BadSample, match="no text"):
        reader.read(2)


def test_a_folder_without_splits_is_the_split_train(folder, load):
    photos = folder.parent.parent / "photos"
    for name in ("cat/1.jpg", "dog/1.jpg", "dog/2.jpg"):
        (photos / name).parent.mkdir(exist_ok=True, parents=True)
        (photos / name).write_bytes(name.encode())
    source = Source(path="photos", vision="file_name", label="label")
    reader = load(source)
    assert [reader.key(row) for row in range(len(reader))] == ["cat/1.jpg", "dog/1.jpg", "dog/2.jpg"]
    assert reader.class_names == ["cat", "dog"] and labels(reader).tolist() == [0, 1, 1]
    with pytest.raises(UserError, match="photos/test does not exist\n  allowed: in .*photos: cat, dog"):
        load(source, split="test")
    with pytest.raises(UserError, match="photos/training does not exist"):  # named, and not there
        load(source, splits={"train": "training"})
    (photos / "val").mkdir()  # this one has splits, of which train is missing: its folders are no classes
    with pytest.raises(UserError, match="photos/train does not exist\n  allowed: in .*photos: cat, dog, val"):
        load(source)


def test_media_without_anything_beside_them(folder, load):
    videos = folder.parent.parent / "videos"
    (videos / "deep").mkdir(parents=True)
    for name in ("b.mp4", "a.mkv", "deep/c.mp4", ".DS_Store", "notes.txt", "list.json"):
        (videos / name).write_bytes(b"x")
    (videos / "loop.mp4").symlink_to(videos / "loop.mp4")
    reader = load(Source(path="videos", vision="file_name", audio="file_name"))
    assert [reader.key(row) for row in range(len(reader))] == ["a.mkv", "b.mp4", "deep/c.mp4"]
    assert reader.read(2)["vision"].path == reader.read(2)["audio"].path == videos / "deep" / "c.mp4"
    with pytest.raises(UserError, match="no media with a .txt each"):
        load(Source(path="videos", vision="file_name", text="text"))


def test_files_elsewhere_are_read_where_media_root_allows_them(folder, load, tmp_path):
    (tmp_path / "store" / "deep").mkdir(parents=True)
    (tmp_path / "store" / "deep" / "x.png").write_bytes(b"x")
    (tmp_path / "secret.png").write_bytes(b"x")
    (folder / "link.png").symlink_to(tmp_path / "store" / "deep" / "x.png")
    names = [str(tmp_path / "store" / "deep" / "x.png"), "link.png", "a.png", str(tmp_path / "secret.png"), "../../secret.png"]
    write(folder, *(dict(GOOD, file_name=name) for name in names))
    with pytest.raises(UserError, match="unsafe name(.|\n)*source.media_root="):
        load()
    write(folder, *(dict(GOOD, file_name=name) for name in [*names, "a.png"]))
    closed, opened = load(), load(media_root=[str(tmp_path / "store")])
    assert [opened.read(row)["vision"].path.name for row in range(3)] == ["x.png", "link.png", "a.png"]
    for reader, rows in ((closed, (0, 1, 3, 4)), (opened, (3, 4))):
        for row in rows:
            with pytest.raises(BadSample, match="unsafe name.*source.media_root"):
                reader.read(row)


def test_a_held_out_share_is_the_same_for_copies_and_on_any_order(folder, load):
    for number in range(60):
        (folder / f"{number}.png").write_bytes(b"%d" % (number % 30))  # each picture twice
    names = [f"{number}.png" for number in range(60)]
    held = {}
    for order in (names, names[::-1]):
        write(folder, *(dict(GOOD, file_name=name) for name in order))
        source = dict(holdout={"validation": 0.3, "test": 0.2})
        split = {name: load(split=name, **source) for name in ("train", "validation", "test")}
        found = {name: {reader.key(row) for row in range(len(reader))} for name, reader in split.items()}
        assert sum(map(len, found.values())) == 60 and set.union(*found.values()) == set(names)
        for keys in found.values():  # number and number + 30 hold the same bytes
            assert {f"{(int(key[:-4]) + 30) % 60}.png" for key in keys} == keys
        assert held.setdefault("found", found) == found
    assert 8 <= len(held["found"]["validation"]) <= 28 and len(held["found"]["train"]) >= 18  # 18 and 30 are expected
    assert split["train"].shard_rows.sum() == len(split["train"]) and split["test"].name == "images[test]"


@pytest.mark.parametrize("layout", ["classes", "media"])
def test_what_is_held_out_of_a_folder_is_not_what_was_of_another_with_the_same_names(tmp_path, settings, layout):
    """Of 30 pictures of other content, in another folder or the same one made anew, others are held out: the two choices of some
    15 of 30 agree by chance once in 2 ** 30."""
    found = []
    for root, first in (("one", 0), ("two", 1), ("one", 2)):
        shutil.rmtree(tmp_path / root, ignore_errors=True)
        folder = tmp_path / root / "photos" / ("cat" if layout == "classes" else "")
        folder.mkdir(parents=True)
        for number in range(30):
            Image.new("RGB", (4, 4), (first, number, 0)).save(folder / f"{number}.png")
        source = Source(path="photos", vision="file_name", holdout={"test": 0.5}, label="label" if layout == "classes" else None)
        reader = open_reader(tmp_path / root, source, "test", settings)
        found.append([reader.key(row) for row in range(len(reader))])
    assert found[0] != found[1] and found[0] != found[2]


def test_splits_that_name_a_table_that_is_not_there_are_no_stack_trace(load):
    for called in ("labels.tsv", "labels.json", "labels.csv"):
        with pytest.raises(UserError, match="labels"):
            load(splits={"train": called})


# --- encodings


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name, delimiter", [("metadata.csv", ","), ("metadata.tsv", "\t"), ("metadata.jsonl", None)])
def test_tables_and_lines_are_read_in_the_encoding_that_their_mark_says(folder, load, encoding, name, delimiter):
    rows = [("a.png", str(n), caption) for n, caption in enumerate(("Bär, \u732b", "grün\nrot", "plain"))]
    if delimiter is None:
        text = "".join(json.dumps(dict(file_name=f, label=int(n), captions=c), ensure_ascii=False) + "\n" for f, n, c in rows)
    else:  # the first field is quoted, right after the mark
        quoted = [[f'"{field}"' for field in row] for row in [("file_name", "label", "captions"), *rows]]
        text = "".join(delimiter.join(row) + "\r\n" for row in quoted)
    mark = "\ufeff" if encoding.endswith("-be") else ""  # the other codecs write their own
    (folder / name).write_bytes((mark + text).encode(encoding))
    reader = pickle.loads(pickle.dumps(load()))
    assert list(captions(reader)) == [row[2] for row in rows] and labels(reader).tolist() == [0, 1, 2]


@pytest.mark.parametrize("encoding, words", [
    ("latin-1", r"2 lines are not UTF-8: line 3 has b'a.png,1,B\\xe4r"), ("utf-16-le", "without a byte order mark"),
])  # fmt: skip
def test_a_table_in_an_encoding_that_it_does_not_say_is_one_message(folder, load, encoding, words):
    text = "file_name,label,captions\na.png,0,dog\na.png,1,Bär\na.png,2,Gänse\n"
    (folder / "metadata.csv").write_bytes(text.encode(encoding))
    with pytest.raises(UserError, match=words) as error:
        load()
    assert "metadata.csv is not in UTF-8" in str(error.value) and "iconv -f" in str(error.value)


def test_a_mark_that_lies_is_one_message(folder, load):
    (folder / "metadata.csv").write_bytes(b"\xff\xfe\x00\xd8!\x00")  # half of a surrogate pair, and "!"
    with pytest.raises(UserError, match="not in the encoding that its first bytes announce"):
        load()


def test_a_damaged_line_is_left_out_where_the_others_are_utf8(folder, load):
    text = "file_name,label,captions\na.png,0,Bär\na.png,1,".encode() + b"\xe4\na.png,2,\xff\na.png,3,x\n"
    (folder / "metadata.csv").write_bytes(text + "a.png,3,Gänse\n".encode() * 10)
    reader = load()
    assert reader.read(0)["text"] == ["Bär"] and reader.read(3)["text"] == ["x"]
    with pytest.raises(BadSample, match="not UTF-8"):
        reader.read(1)


def test_captions_beside_pictures_are_read_by_their_mark(folder, load):
    (folder / "a.txt").write_bytes("ein Bär\nnoch einer".encode("utf-16"))
    source = SOURCE.model_copy(update={"text": "text", "label": None})
    assert load(source).read(0)["text"] == ["ein Bär", "noch einer"]
