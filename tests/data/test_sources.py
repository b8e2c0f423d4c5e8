"""Folders of media: what is read, and every way in which they can be wrong."""

import json

import pytest
from PIL import Image

from imp_ds.data.sources import FolderSource
from imp_ds.errors import UserError
from imp_ds.tasks import Source

SOURCE = Source(path="images", vision="file_name", text="captions", label="label")
GOOD = dict(file_name="a.png", label=3, captions=["a", "b"])


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images" / "train"
    folder.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    return folder


def write(folder, *rows):
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")


def load(folder, source=SOURCE):
    return FolderSource(folder.parent.parent, source, "train")


def test_rows_by_role(folder):
    write(folder, GOOD, "", dict(GOOD, label=4, captions="only one", extra=1.5))
    source = load(folder)
    assert len(source) == 2
    assert source.row(1) == dict(vision="a.png", text=["only one"], label=4)
    assert source.labels().tolist() == [3, 4]
    assert list(source.captions()) == ["a", "b", "only one"]
    assert source.path(0, "vision") == folder / "a.png"


@pytest.mark.parametrize(
    "row, words",
    [
        ("{broken", ["line 2", "not JSON", "{broken"]),
        ("[1]", ["line 2", "not a JSON object"]),
        ("[" * 100_000, ["line 2", "not JSON"]),
        (dict(file_name="a.png", caption="x", label=1), ["line 2", "'captions'", "file_name, caption, label"]),
        (dict(GOOD, label="3"), ["line 2", "class index", "3"]),
        (dict(GOOD, label=True), ["class index"]),
        (dict(GOOD, label=-1), ["class index"]),
        (dict(GOOD, captions=[]), ["caption"]),
        (dict(GOOD, captions=["a", None]), ["caption"]),
        (dict(GOOD, file_name=None), ["not a file name"]),
        (dict(GOOD, file_name="/etc/passwd"), ["outside its folder", "/etc/passwd"]),
        (dict(GOOD, file_name="x/../../a.png"), ["outside its folder"]),
        (dict(GOOD, file_name="..\\a.png"), ["outside its folder"]),
        (dict(GOOD, file_name="C:a.png"), ["outside its folder"]),
        (dict(GOOD, file_name="http://host/a.png"), ["outside its folder"]),
        (dict(GOOD, file_name="gone.png"), ["row 2", "not there", "gone.png"]),
    ],
)
def test_a_bad_row_is_named(folder, row, words):
    write(folder, GOOD, row)
    with pytest.raises(UserError) as error:
        load(folder)
    for word in words:
        assert word in str(error.value)


def test_bytes_that_are_not_utf8_are_named(folder):
    (folder / "metadata.jsonl").write_bytes(b'{"file_name": "\xff.png", "label": 1, "captions": "x"}\n')
    with pytest.raises(UserError, match="line 1 is not JSON"):
        load(folder)


def test_links_may_not_lead_out(folder, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"x")
    (folder / "out.png").symlink_to(tmp_path / "secret.png")
    (folder / "in.png").symlink_to(folder / "a.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    write(folder, GOOD, dict(GOOD, file_name="in.png"))
    assert load(folder).path(1, "vision").read_bytes() == (folder / "a.png").read_bytes()
    write(folder, GOOD, dict(GOOD, file_name="out.png"))
    with pytest.raises(UserError, match="link that leads out"):
        load(folder)
    write(folder, GOOD, dict(GOOD, file_name="loop.png"))
    with pytest.raises(UserError, match="not there"):
        load(folder)
    write(folder, GOOD, dict(GOOD, file_name="out.png"), GOOD)  # in the middle: refused when it is opened
    with pytest.raises(UserError, match="row 2 names a link"):
        load(folder).path(1, "vision")


def test_missing_folders_say_what_is_there(folder):
    write(folder, GOOD)
    root = folder.parent.parent
    with pytest.raises(UserError, match="corpus digits DIR"):
        FolderSource(root / "nowhere", SOURCE, "train")
    with pytest.raises(UserError, match="in .*images: train"):
        FolderSource(root, SOURCE, "test")
    with pytest.raises(UserError, match=r"in .*: images"):
        FolderSource(root, SOURCE.model_copy(update={"path": "films"}), "train")
    (folder / "metadata.jsonl").unlink()
    with pytest.raises(UserError, match="has no metadata.jsonl"):
        load(folder)


def test_empty_metadata_and_empty_files(folder):
    write(folder)
    with pytest.raises(UserError, match="no rows"):
        load(folder)
    (folder / "a.png").write_bytes(b"")
    write(folder, GOOD)
    with pytest.raises(UserError, match="a.png is empty"):
        load(folder)
