"""`imp_ds embed` and `imp_ds search` on a small untrained model: every kind of item, broken files, a kill, other models."""

import json
import multiprocessing
import os
import shutil
import signal

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from imp_ds.commands.exported_model import load_model
from imp_ds.commands.vectors import embed_command
from imp_ds.commands.vectors.embed_command import embed
from imp_ds.commands.vectors.encoder import Encoder
from imp_ds.commands.vectors.items import RecipeItems
from imp_ds.commands.vectors.search_command import search
from imp_ds.commands.vectors.vector_file import StagedParts
from imp_ds.errors import UserError

PICTURES = 7  # of the fixture


def test_every_file_has_its_vector_and_what_is_broken_is_named(place, embedded, capsys):
    table = pq.read_table(embedded)
    pictures = [f"p{number}.png" for number in range(PICTURES)]
    expected = [*pictures, "picture_without_ending", "words.txt", "more/clip.mp4", "more/long.wav"]
    assert table["id"].to_pylist() == expected
    assert table["kind"].to_pylist() == ["image"] * (PICTURES + 1) + ["text", "video", "audio"]
    assert table["text"].to_pylist()[PICTURES + 1] == "a red square"
    vectors = np.stack(table["vector"].to_pylist())
    # two pairs of 8 numbers: vision and text, audio and text; each vector has length 1
    assert vectors.shape == (len(expected), 16) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    left_out = [json.loads(line) for line in embedded.with_suffix(".rejected.jsonl").read_text().splitlines()]
    assert {entry["id"]: entry["reason"] for entry in left_out} == {"blank.txt": "no text", "broken.png": "unreadable image"}
    embed(place[0] / "model", place[0] / "files", embedded)
    assert "complete already" in capsys.readouterr().out


def test_a_vector_is_that_of_the_model_itself(place, embedded):
    """By the processor and `get_features`, which share no code with the command but the decoder."""
    model, processor = load_model(place[0] / "model")
    with Image.open(place[0] / "files" / "p2.png") as picture, torch.no_grad():
        own = model.imp.eval().get_features("vision", **processor(images=[picture.convert("RGB")])).pooler_output[0]
    found = pq.read_table(embedded)["vector"].to_pylist()[2]
    assert np.allclose(found, own.numpy(), atol=1e-5)


def _die_after_two_parts(model, files, out):
    torch.set_num_threads(1)
    write = StagedParts.write

    def killed(self, number, *rest):
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, number, *rest)

    StagedParts.write = killed
    embed(model, files, out, rows=4)


def test_a_killed_process_is_gone_on_from(place, embedded, tmp_path, monkeypatch):
    out = tmp_path / "out.parquet"
    child = multiprocessing.get_context("fork").Process(
        target=_die_after_two_parts, args=(place[0] / "model", place[0] / "files", out)
    )
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL and not out.exists()
    asked, own = [], embed_command._embedded
    monkeypatch.setattr(embed_command, "_embedded", lambda *args: asked.append(args[2]) or own(*args))
    embed(place[0] / "model", place[0] / "files", out, rows=4)
    # 13 files in parts of 4: two were there
    assert asked == [range(8, 12), range(12, 13)]
    resumed, whole = pq.read_table(out), pq.read_table(embedded)
    assert resumed.drop_columns("vector").equals(whole.drop_columns("vector"))
    assert np.allclose(np.stack(resumed["vector"].to_pylist()), np.stack(whole["vector"].to_pylist()), atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "out.rejected.jsonl"]


def test_the_samples_of_a_recipe_with_all_their_captions(place, tmp_path, capsys):
    root, run = place
    embed(root / "model", run, tmp_path / "out.parquet", split="test")
    table = pq.read_table(tmp_path / "out.parquet")
    # three sources of 7 rows, each a medium and two captions
    kinds = table["kind"].to_pylist()
    assert {kind: kinds.count(kind) for kind in kinds} == {"image": 7, "video": 7, "audio": 7, "text": 42}
    assert set(table["task"].to_pylist()) == {"image_text", "video_text", "audio_text"}
    assert set(table["split"].to_pylist()) == {"test"} and len(set(table["id"].to_pylist())) == 63
    assert "63 vectors (7 audio, 7 image, 42 text, 7 video)" in capsys.readouterr().out


def test_a_column_that_several_tasks_read_is_embedded_once(place):
    _, run = place
    films = run.tasks[1].source
    heard = films.model_copy(update={"audio": "file_name"})
    views = run.tasks[1].views.model_copy(update={"audio": run.tasks[2].views.audio})
    more = run.tasks[1].model_copy(update={"name": "heard", "source": heard, "views": views})
    again = run.tasks[1].model_copy(update={"name": "again"})
    run = run.model_copy(update={"tasks": [run.tasks[1], more, again]})
    listing = RecipeItems(run, "test", ["vision", "audio", "text"])
    names = [item.id for row in range(len(listing)) for item in listing.items(row)]
    # 7 videos with two captions each, and then their audio alone
    assert len(names) == len(set(names)) == 7 * 3 + 7
    assert all(name.endswith("#audio") for name in names[21:])


def test_search_ranks_by_the_cosine_of_the_pair(place, embedded, tmp_path):
    root, _ = place
    hits = search(root / "model", embedded, "a red square", top=4, only=["image"], output=tmp_path / "hits.jsonl")
    encoder = Encoder(root / "model")
    model, tokens = encoder.model, encoder.processor.tokenizer(["a red square"], return_tensors="pt")
    expected = {}
    with torch.no_grad():
        text = F.normalize(model(**{k: tokens[k] for k in ("input_ids", "attention_mask")}).embeddings["text_to_vision"], dim=-1)
        for number in range(PICTURES):
            with Image.open(root / "files" / f"p{number}.png") as picture:
                image = model(**encoder.processor(images=[picture.convert("RGB")])).embeddings["vision_to_text"]
            expected[f"p{number}.png"] = (F.normalize(image, dim=-1) @ text.T).item()
    expected["picture_without_ending"] = expected["p1.png"]  # the same file
    by_cosine = sorted(expected, key=lambda name: -expected[name])[:4]
    assert [round(hit.cosine, 4) for hit in hits] == [round(expected[name], 4) for name in by_cosine]
    # text fills two blocks, an image one: the vectors' cosine is smaller by the root of 2
    assert all(hit.cosine == pytest.approx(hit.vector_cosine * 2**0.5) for hit in hits)
    assert [json.loads(line)["id"] for line in (tmp_path / "hits.jsonl").read_text().splitlines()] == [
        h.columns["id"] for h in hits
    ]


def test_search_by_a_file_finds_it_and_leaves_out_what_is_not_compared(place, embedded):
    root, _ = place
    hits = search(root / "model", embedded, str(root / "files" / "p3.png"), top=100)
    assert hits[0].columns["id"] == "p3.png" and hits[0].cosine == pytest.approx(1, abs=1e-5)
    assert {hit.columns["kind"] for hit in hits} == {"image", "video", "text"}  # no task compares pictures with audio
    with pytest.raises(UserError, match="no item of audio can be compared"):
        search(root / "model", embedded, str(root / "files" / "p3.png"), only=["audio"])


def test_what_cannot_be_searched_is_refused(place, embedded, tmp_path):
    root, _ = place
    shutil.copytree(root / "model", tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "dropout": 0.5}))
    with pytest.raises(UserError, match="the vectors are of another model"):
        search(tmp_path / "other", embedded, "red")
    with pytest.raises(UserError, match="there is no such file"):
        search(root / "model", embedded, "nowhere.png")
    with pytest.raises(UserError, match="the query cannot be read"):
        search(root / "model", embedded, str(root / "files" / "broken.png"))
    pq.write_table(pq.read_table(embedded).replace_schema_metadata(None), tmp_path / "plain.parquet")
    with pytest.raises(UserError, match="no file of vectors"):
        search(root / "model", tmp_path / "plain.parquet", "red")
    with pytest.raises(UserError, match="no file of vectors"):  # a file of one's own is not overwritten
        embed(root / "model", root / "files", tmp_path / "plain.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no file to embed"):
        embed(root / "model", tmp_path / "empty", tmp_path / "out.parquet")
