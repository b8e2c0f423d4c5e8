"""Conversations made of the columns of a table, in every format: of questions, captions, classes and commands."""

import io
import json
import tarfile
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image
from pydantic import ValidationError

from imp_ds.data.decoding import decode
from imp_ds.data.sources import captions, open_reader
from imp_ds.errors import UserError
from imp_ds.modalities.media import BadSample
from imp_ds.modalities.messages.view import MessagesView
from imp_ds.modalities.modality import files_of
from imp_ds.modalities.views import Views
from imp_ds.tasks import Source

VIEWS = Views(messages=MessagesView(length=64))
QUESTION = ["<image:picture>{question}", "{answer}"]
ROWS = [dict(question=f"what is {n}?", answer=f"it is {n}", notes=[f"a {n}", "", f"the {n}"], place=n) for n in range(3)]


def picture(number):
    out = io.BytesIO()
    Image.fromarray(np.full((4, 4 + number, 3), 9 * number, np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The same three rows as CSV, JSON lines, Parquet, tar shards and a data set of Hugging Face; pictures in class folders."""
    root = tmp_path_factory.mktemp("tables")
    for name in ("csv", "lines", "classes/train/cat", "classes/train/dog", "tar", "parquet"):
        (root / name).mkdir(parents=True)
    for n in range(3):
        for folder in (root / "csv", root / "lines", root / "classes" / "train" / ("cat", "dog")[n % 2]):
            (folder / f"{n}.png").write_bytes(picture(n))
    table = "".join(f"{n}.png,{row['question']},{row['answer']}\n" for n, row in enumerate(ROWS))
    (root / "csv" / "train.csv").write_text(f"picture,question,answer\n{table}")
    lines = [json.dumps(row | {"picture": f"{n}.png"}) for n, row in enumerate(ROWS)]
    (root / "lines" / "train.jsonl").write_text("\n".join(lines))
    rows = [row | {"picture": {"bytes": picture(n), "path": None}} for n, row in enumerate(ROWS)]
    pq.write_table(pa.Table.from_pylist(rows), root / "parquet" / "train.parquet")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(root / "hub")
    with tarfile.open(root / "tar" / "train-0.tar", "w") as tar:
        for n, row in enumerate(ROWS):
            sound = io.BytesIO()
            soundfile.write(sound, np.zeros(800, np.float32), 8000, format="WAV")
            for extension, data in {"json": json.dumps(row).encode(), "png": picture(n), "wav": sound.getvalue()}.items():
                info = tarfile.TarInfo(f"{n}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return root


def opened(root, **source):
    settings = SimpleNamespace(cache_dir=str(root / "cache"), cache_gb=1.0, retries=0, window=1024)
    return open_reader(root, Source(**source), "train", settings)


def texts(conversation):
    return [[part["text"] for part in turn["content"] if part["type"] == "text"] for turn in conversation]


@pytest.mark.parametrize("source", [
    dict(path="csv/train.csv", turns=QUESTION), dict(path="lines/train.jsonl", turns=QUESTION),
    dict(path="parquet", format="parquet", turns=QUESTION), dict(path="hub", format="huggingface", turns=QUESTION),
    dict(path="tar", format="webdataset", turns=["<image>{json.question}", "{json.answer}"]),
    dict(path="tar", format="webdataset", turns=["<image:jpg;png>{json.question}", "{json.answer}"]),
])  # fmt: skip
def test_a_table_of_questions_is_a_corpus_of_conversations(root, source):
    rows = opened(root, **source)
    for number, row in enumerate(ROWS):
        found = decode(rows.read(number), VIEWS)["messages"]
        assert [turn["role"] for turn in found] == ["user", "assistant"]
        assert texts(found) == [[row["question"]], [row["answer"]]]
        assert found[0]["content"][0]["image"].shape == (4, 4 + number, 3)  # each its own picture
        assert len(files_of(rows.read(number))["messages"]) == 1
    assert "what is 2?\nit is 2" in list(captions(rows))  # what a tokenizer is trained on


def test_training_draws_wordings_and_captions_and_evaluation_takes_the_first(root):
    asked = ["<image:picture>describe it.", "look: <image:picture> what is there?"]
    raw = opened(root, path="lines/train.jsonl", turns=[asked, "{notes}"]).read(1)
    # 2 wordings and 2 notes, of which the empty one is none: all 4 come
    drawn = {str(texts(decode(raw, VIEWS, np.random.default_rng(seed))["messages"])) for seed in range(40)}
    wanted = [[words, [note]] for words in (["describe it."], ["look: ", " what is there?"]) for note in ("a 1", "the 1")]
    assert drawn == {str(one) for one in wanted}
    first = decode(raw, VIEWS)["messages"]
    assert texts(first) == [["describe it."], ["a 1"]] and "others" not in first[0]
    other = next(
        found for seed in range(40) if texts(found := decode(raw, VIEWS, np.random.default_rng(seed))["messages"])[0][1:]
    )
    assert [part["type"] for part in other[0]["content"]] == [
        "text",
        "image",
        "text",
    ]  # the medium stands where this wording has it


def test_the_name_of_the_class_is_an_answer(root):
    rows = opened(root, path="classes", label="label", turns=["<image:file_name>which is it?", "a {}."])
    assert [texts(rows.read(n)["messages"])[1] for n in range(3)] == [["a cat."]] * 2 + [["a dog."]]


def test_a_sample_without_a_tag_shows_none_of_its_media(root):
    rows = opened(root, path="tar", format="webdataset", turns=["<audio>what is heard?", "{json.place}"])
    assert [media.suffix for media in files_of(rows.read(2))["messages"]] == [".wav"] and texts(rows.read(2)["messages"])[1] == [
        "2"
    ]


def test_what_cannot_be_made_is_said(root):
    answers = ["", ["x"], "x", "x", "<image>", {"a": 1}, "x"]
    rows = [dict(picture="0.png", answer=answer) for answer in answers]
    rows[2]["picture"] = None
    del rows[3]["picture"]
    (root / "lines" / "odd.jsonl").write_text("\n".join(map(json.dumps, rows)))
    reader = opened(root, path="lines/odd.jsonl", turns=["<image:picture>what?", "{answer}"])
    reasons = []
    for row in range(len(rows)):
        try:
            reasons.append(reader.read(row) and None)
        except BadSample as bad:
            reasons.append(bad.reason)
    wanted = ["empty turn", None, "missing file", "missing column", "media do not match", "wrong column", None]
    assert reasons == wanted
    with pytest.raises(UserError, match="(?s)lacks a column.*'anwser'"):
        opened(root, path="parquet", format="parquet", turns=["{question}", "{anwser}"])
    with pytest.raises(UserError, match=r"(?s)source.turns cannot be filled.*source.label names no column"):
        opened(root, path="csv/train.csv", turns=["<image:picture>which?", "{}"])


@pytest.mark.parametrize("turns, message", [
    (["<image>{question}"], "end with an answer; got 1"),
    (["{question}", " "], "turn 2 is empty"),
    ([["<image>what?", "what?"], "{answer}"], "have not the same media"),
])  # fmt: skip
def test_turns_that_are_no_conversation_are_refused(turns, message):
    with pytest.raises(ValidationError, match=message):
        Source(path="x", turns=turns)


def test_turns_beside_a_column_of_conversations_are_refused():
    with pytest.raises(ValidationError, match="turns is set beside the column"):
        Source(path="x", messages="messages", turns=["a", "b"])
