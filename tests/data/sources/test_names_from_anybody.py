"""Names and captions that are not UTF-8 or hold control characters: read, or left out and named, and of no harm where shown."""

import io
import json
import os

import pytest
from PIL import Image

from helpers.made_corpus import make_run, picture
from imp_ds.commands.check import command as check_command
from imp_ds.commands.check.command import check
from imp_ds.commands.check.request import CheckRequest
from imp_ds.commands.show_command import show as show_page
from imp_ds.config import DataSettings
from imp_ds.data.sources import open_reader
from imp_ds.errors import UserError
from imp_ds.modalities.media import BadSample
from imp_ds.modalities.text.captions import captions
from imp_ds.planning.plan import plan
from imp_ds.tasks import Source
from imp_ds.terminal.printable import printable
from imp_ds.terminal.stage_progress import StageProgress
from imp_ds.train.recording.progress import Progress
from imp_ds.train.recording.samples import sample_table

FORGED = "a\x1b[2J\nerror: forged\r\x9b31m\u202e.png"


def test_what_could_forge_a_line_is_written_out():
    assert printable("a\tb\x1b[31m\n\u202e\udcff") == r"a\tb\x1b[31m\n\u202e\udcff"
    assert printable("犬 e\u0301 👩\u200d👧") == "犬 e\u0301 👩\u200d👧"  # letters, accents and joined pictures stay
    assert printable("two\nlines\r", lines=True) == "two\nlines\\r"


def test_an_error_cannot_be_given_an_additional_entry():
    error = str(UserError("a file\x1b is bad", got="x\n  fix:     run this", fix="mend it"))
    assert error == "a file\\x1b is bad\n  got:     x\n             fix:     run this\n  fix:     mend it"


def test_progress_and_tables_say_it_in_one_line(capsys):
    out = io.StringIO()
    Progress(1, stream=out).log(f"left out: {FORGED}")
    assert out.getvalue() == "left out: a\\x1b[2J\\nerror: forged\\r\\x9b31m\\u202e.png\n"
    with StageProgress() as progress:
        progress(FORGED, 1, 1)
    assert capsys.readouterr().out == printable(FORGED) + ": 1\n"
    assert sample_table({"caption": ["a\n| 2 | <img src=x>"]}).splitlines()[2:] == ["| 1 | a\\n\\| 2 \\| &lt;img src=x&gt; |"]


@pytest.mark.parametrize("value", ["\u200b", "\ufeff", "\u200e\u200f", "\x01", [None, None], [None, "\u200b "], None])
def test_captions_without_anything_to_see_are_no_text(value):
    with pytest.raises(BadSample, match="no text"):
        captions(value, "row 1")


def test_none_among_captions_is_passed_over():
    assert captions(["a dog", None, "\u200b", "a\u200bb"], "row 1") == ["a dog", "a\u200bb"]
    with pytest.raises(BadSample, match="wrong column"):
        captions(["a dog", 3], "row 1")
    with pytest.raises(BadSample, match="wrong column: row 1 is no Unicode text"):
        captions(["a dog", "a \udcff"], "row 1")


def write_class_folders(root) -> None:
    """Two classes; of the first one file whose name is not UTF-8, one of control characters, and one that is no picture."""
    for label, names in (("cat", [b"\xff.png", FORGED.encode(), b"\xfe.png", b"a.png"]), ("dog", [b"b.png"])):
        folder = os.fsencode(root / "pets" / "train" / label)
        os.makedirs(folder)
        for seed, name in enumerate(names):
            out = io.BytesIO()
            Image.fromarray(picture(16, 16, seed)).save(out, "PNG")
            with open(os.path.join(folder, name), "wb") as file:
                file.write(b"no picture" if name == b"\xfe.png" else out.getvalue())


@pytest.fixture
def run(tmp_path, monkeypatch):
    write_class_folders(tmp_path)
    monkeypatch.setattr(check_command, "worker_speed", lambda *given, **settings: 10.0)
    run = make_run(tmp_path, "image_class", max_rejected=0.5)
    task = run.tasks[0].model_copy(update={"source": Source(path="pets", vision="file_name", label="label")})
    return run.model_copy(update={"tasks": [task]})


def test_check_reads_or_names_them(run, tmp_path, capsys):
    assert check(CheckRequest(run, plan(run, 1, 1), processes=0), tmp_path / "found.json")
    text = capsys.readouterr().out
    text.encode("utf-8")
    assert "cat/\\udcfe.png: unreadable image" in text and "\x1b" not in text and "\nerror" not in text
    [source] = json.loads((tmp_path / "found.json").read_text())["sources"]
    assert source["looked_at"] == 5 and source["left_out"] == {"image_class": {"unreadable image": 1}}


def test_show_writes_its_page(run, tmp_path):
    show_page(run, "train", 4, None, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "cat/" in page and "\x1b" not in page


def test_a_class_that_is_not_utf8_is_named_at_the_start(tmp_path):
    os.makedirs(os.fsencode(tmp_path / "pets" / "train") + b"/\xff")
    with pytest.raises(UserError, match=r"a class name is not UTF-8\n  got: +\\udcff"):
        open_reader(tmp_path, Source(path="pets", vision="file_name", label="label"), "train", DataSettings(root=str(tmp_path)))
