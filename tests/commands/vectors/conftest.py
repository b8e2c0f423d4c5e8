"""A small exported model, a folder of files of every kind, and their vectors."""

import shutil

import pytest

from helpers.exported import export, write_media
from imp_ds.commands.vectors.embed_command import embed

PICTURES = 7


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """model/, the corpus, and files/: a video, a recording longer than the view, pictures, texts, what is broken, and what is
    no medium; and the model's run."""
    root = tmp_path_factory.mktemp("vectors")
    write_media(root)
    run = export(root, root / "model")
    files = root / "files"
    (files / "more").mkdir(parents=True)
    for number in range(PICTURES):
        shutil.copy(root / "image" / "test" / f"{number}.png", files / f"p{number}.png")
    shutil.copy(root / "video" / "test" / "0.mp4", files / "more" / "clip.mp4")
    shutil.copy(root / "audio" / "test" / "6.wav", files / "more" / "long.wav")
    shutil.copy(root / "image" / "test" / "1.png", files / "picture_without_ending")
    (files / "words.txt").write_text("a red square\n")
    (files / "blank.txt").write_text(" \n")
    (files / "broken.png").write_bytes(b"\x89PNG and nothing more")
    (files / "notes.json").write_text("{}")
    (files / ".hidden.png").write_bytes(b"x")
    return root, run


@pytest.fixture(scope="session")
def embedded(place):
    out = place[0] / "files.parquet"
    embed(place[0] / "model", place[0] / "files", out)
    return out
