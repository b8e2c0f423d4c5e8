"""`talk_real` on tables with the columns of its sets, a few rows each: what is asked, and what is learned."""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from helpers.media_files import write_video
from imp_ds.data.corpus import open_corpus
from imp_ds.data.decoding import decode
from imp_ds.data.loading.collation import Collator
from imp_ds.families import family_of
from imp_ds.recipes import get_recipe

CLASSES = ["zero", "one"]
ANSWERS = {
    "captions": "a dog runs", "radiology": "yes", "shapes": "false", "sounds": "rooster", "words": "enter", "orders": "latte",
    "digits": "one", "objects": "one", "actions": "one",
}  # fmt: skip


def picture():
    out = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(out, "PNG")
    return {"bytes": out.getvalue(), "path": None}


def write_table(folder, **columns):
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([{"image": picture()} | columns] * 2), folder / "train.parquet")


def write_shard(folder, **fields):
    folder.mkdir(parents=True)
    sound = io.BytesIO()
    soundfile.write(sound, np.zeros(40000, np.float32), 16000, format="OGG")
    with tarfile.open(folder / "train-0.tar", "w") as tar:
        for row in range(2):
            for extension, data in {"json": json.dumps(fields).encode(), "ogg": sound.getvalue()}.items():
                info = tarfile.TarInfo(f"{row}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    write_table(root / "wide/photos", captions=["a dog runs", "a dog that runs"])
    write_table(root / "wide/qa_radiology", question="is the heart large?", answer="yes")
    write_table(root / "wide/qa_shapes", question="there is a black box.", answer="false")
    write_table(root / "real/images", label=1)
    write_shard(root / "wide/sounds_esc10", **{"class": "rooster"})
    write_shard(root / "wide/speech_arabic", english="enter")
    write_shard(root / "wide/speech_orders", drink="latte")
    write_shard(root / "real/audio", label=1)
    films = root / "real/videos/train"
    films.mkdir(parents=True)
    write_video(films / "a.mp4", np.full((20, 64, 64, 3), 90, np.uint8))
    (films / "metadata.jsonl").write_text(json.dumps({"file_name": "a.mp4", "label": 1}) + "\n")
    for name in ("audio", "images", "videos"):
        (root / "real" / name / "classes.json").write_text(json.dumps(CLASSES))
    return root


def test_every_set_is_asked_about_its_media_and_answers_are_learned(root):
    data = {"root": str(root), "cache_dir": str(root / "cache"), "vocab_size": 90}
    run = get_recipe("talk_real_debug")
    run.data = run.data.model_copy(update=data)
    readers = open_corpus(run)
    processor = family_of(run).processor(run, readers)
    for task in run.tasks:
        (reader,) = readers[task.name]
        sample = decode(reader.read(0), task.views)
        batch = Collator(processor)(task.name, task.views, [sample])
        labels = batch.targets["labels"][0]
        learned = processor.tokenizer.decode(labels[labels >= 0]).partition("<|end|>")[0].strip()
        assert learned == ANSWERS[task.name], task.name
        (kind,) = (part["type"] for part in sample["messages"][0]["content"] if part["type"] != "text")
        placeholder = processor.tokenizer.convert_tokens_to_ids(f"<{kind}>")
        chunks = 1 + (kind == "audio")  # 2.5 s are two of 2 s
        found = batch.inputs["messages"]["input_ids"] == placeholder
        assert int(found.sum()) == chunks * processor.media_tokens[kind]
    assert [task.name for task in run.tasks] == list(ANSWERS)
