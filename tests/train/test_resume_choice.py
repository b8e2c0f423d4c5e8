"""What --resume takes: the newest complete checkpoint, or none, or the one of a step; never a start over what is there."""

import hashlib
import json

import pytest

from imp_ds.errors import UserError
from imp_ds.train import checkpoint, resume


def put(run, step: int, full: bool = True):
    """A checkpoint of which nothing but the manifest is real."""
    folder = run / checkpoint.FOLDER / checkpoint.folder_name(step)
    folder.mkdir(parents=True)
    listed = {}
    for name, text in (("state.json", json.dumps({"step": step})), ("index.json", "{}")):
        (folder / name).write_text(text)
        listed[name] = {"size": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(listed))
    if not full:
        (folder / "state.json").write_text("[]")
    return folder


def test_a_new_run_starts(tmp_path):
    assert resume.find(tmp_path / "run", "auto") is None
    with pytest.raises(UserError, match="no complete checkpoint"):
        resume.find(tmp_path / "run", "latest")


@pytest.mark.parametrize("where", ["auto", "latest"])
def test_the_newest_complete_one_is_taken(where, tmp_path):
    put(tmp_path, 4)
    middle, last, warned = put(tmp_path, 8), put(tmp_path, 12), []
    assert resume.find(tmp_path, where) == last
    (last / "state.json").write_text("[]")
    assert resume.find(tmp_path, where, warned.append) == middle
    assert len(warned) == 1 and "step_00000012" in warned[0]


def test_a_run_whose_checkpoints_are_all_damaged_is_not_started_anew(tmp_path):
    put(tmp_path, 4, full=False)
    with pytest.raises(UserError, match="no complete checkpoint.*\n.*: 4\n.*move that folder away"):
        resume.find(tmp_path, "auto", lambda message: None)


def test_one_step_is_taken_when_it_is_the_last(tmp_path):
    put(tmp_path, 4)
    last = put(tmp_path, 8)
    assert resume.find(tmp_path, "8") == last
    with pytest.raises(UserError, match="no checkpoint of that step\n.*5\n.*4, 8"):
        resume.find(tmp_path, "5")
    with pytest.raises(UserError, match="later steps than 4.*\n  got:     8\n") as refusal:
        resume.find(tmp_path, "4")
    # what it says helps
    aside = tmp_path / "checkpoints.after_4"
    assert str(refusal.value).endswith(f"  fix:     mkdir {aside} && mv {last} {aside}")
    aside.mkdir()
    last.rename(aside / last.name)
    assert resume.find(tmp_path, "4").name == "step_00000004"


def test_a_damaged_one_is_named(tmp_path):
    put(tmp_path, 4, full=False)
    with pytest.raises(UserError, match="step_00000004/state.json"):
        resume.find(tmp_path, "4")


def test_nothing_else_is_understood(tmp_path):
    with pytest.raises(UserError, match="'newest'\n  allowed: auto, latest"):
        resume.find(tmp_path, "newest")
