"""Conversations: every spelling and format gives the same samples, and what is wrong with one is said."""

import base64
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers.conversations import SOURCES, as_tags, conversations, file_of, media_in, write_all
from imp_ds.data.decoding import decode
from imp_ds.data.inspect.check import look
from imp_ds.data.loading.collation import Collator
from imp_ds.data.order.order import SampleIndex
from imp_ds.data.order.usable_samples import UsableSamples
from imp_ds.data.sources import captions, open_reader
from imp_ds.errors import UserError
from imp_ds.families.imp.settings import ModelSettings
from imp_ds.modalities.media import BadSample
from imp_ds.modalities.media_cache import MediaCache
from imp_ds.modalities.messages.view import MessagesView
from imp_ds.modalities.modality import Wanted, files_of, get_modality
from imp_ds.modalities.views import Views
from imp_ds.objectives import Contrastive
from imp_ds.tasks import Batch, Source, Task
from imp_ds.train.recording.samples import batch_captions

VIEWS = Views(messages=MessagesView(length=64, frames=2, sampling_rate=16000))


def settings(folder):
    return SimpleNamespace(cache_dir=str(folder / "cache"), cache_gb=1.0, retries=0, window=1024)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("conversations"))


def reader(corpus, name):
    return open_reader(corpus, Source(path=name, **SOURCES[name]), "train", settings(corpus))


@pytest.fixture(scope="module")
def decoded(corpus):
    """name -> all conversations, decoded."""
    return {name: all_of(reader(corpus, name)) for name in SOURCES}


def all_of(rows):
    return [decode(rows.read(row), VIEWS)["messages"] for row in range(len(rows))]


def plain(conversation):
    """With arrays as what can be compared."""
    value = lambda part: part["text"] if part["type"] == "text" else (part[part["type"]].tobytes(), part[part["type"]].shape)  # noqa: E731
    return [(turn["role"], [(part["type"], value(part)) for part in turn["content"]]) for turn in conversation]


# --- what is read


def test_the_spelling_with_parts_is_decoded_as_it_was_written(decoded):
    for found, turns in zip(decoded["parts"], conversations(), strict=True):
        assert [turn["role"] for turn in found] == [role for role, _ in turns]
        for turn, (_, parts) in zip(found, turns):
            assert len(turn["content"]) == len(parts)
            for part, wanted in zip(turn["content"], parts):
                if isinstance(wanted, str):
                    assert part == {"type": "text", "text": wanted}
                    continue
                kind, number = wanted
                array = part[kind]
                if kind == "image":  # 8 rows and 6 + number columns of one grey: its own size
                    assert array.dtype == np.uint8 and array.shape == (8, 6 + number, 3) and (array == 10 * number % 256).all()
                if kind == "video":  # two of its three frames
                    assert array.dtype == np.uint8 and array.shape == (2, 16, 16, 3)
                if kind == "audio":  # 800 + 100 * number samples at 8 kHz are twice as many at 16
                    assert array.dtype == np.float32 and array.shape == (1600 + 200 * number,)


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "parts"])
def test_every_spelling_and_format_gives_the_same_conversations(decoded, name):
    assert len(decoded[name]) == 20
    for found, wanted in zip(decoded[name], decoded["parts"], strict=True):
        assert plain(found) == plain(wanted)


def test_a_row_tells_its_files_and_its_text(corpus):
    rows = reader(corpus, "tags")
    assert [len(files_of(rows.read(row))["messages"]) for row in range(20)] == [
        sum(map(len, media_in(turns).values())) for turns in conversations()
    ]
    assert next(captions(rows)) == "be brief.\nwhat is 0?\nit is 0."
    # a conversation is no file: its key is that of its line
    assert rows.key(0).startswith("line-") and len({rows.key(row) for row in range(20)}) == 20


def read(folder, *rows, **source):
    """The conversation of the last row."""
    (folder / "chat").mkdir(exist_ok=True)
    (folder / "chat" / "a.png").write_bytes(file_of("image", 0))
    (folder / "chat" / "b.wav").write_bytes(file_of("audio", 0))
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (folder / "chat" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (*rows, good)))
    found = open_reader(folder, Source(path="chat/rows.jsonl", **{"messages": "messages"} | source), "train", settings(folder))
    return found.read(len(rows) - 1)["messages"]


def asked(*content, answer="yes"):
    return {"messages": [{"role": "user", "content": [*content]}, {"role": "assistant", "content": answer}]}


@pytest.mark.parametrize("part", [
    {"type": "image", "image": "a.png"}, {"type": "image", "path": "a.png"}, {"type": "image", "url": "a.png"},
    {"type": "image_url", "image_url": {"url": "a.png"}}, {"type": "input_image", "image_url": "a.png"},
    {"type": "image", "image": {"path": "a.png", "bytes": None}, "text": None},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(file_of("image", 0)).decode()}},
])  # fmt: skip
def test_parts_name_files_as_every_interface_does(tmp_path, part):
    image = decode({"messages": read(tmp_path, asked(part))}, VIEWS)["messages"][0]["content"][0]["image"]
    assert image.shape == (8, 6, 3)


def test_audio_may_stand_in_a_part_itself(tmp_path):
    data = base64.b64encode(file_of("audio", 0)).decode()
    row = asked({"type": "input_audio", "input_audio": {"data": data, "format": "wav"}})
    assert decode({"messages": read(tmp_path, row)}, VIEWS)["messages"][0]["content"][0]["audio"].shape == (1600,)


def test_a_part_without_a_name_and_a_single_column(tmp_path):
    row = asked({"type": "image"}, {"type": "text", "text": "is it?"}) | {"image": "a.png"}
    (image, text) = read(tmp_path, row)[0]["content"]
    assert image["image"].path.name == "a.png" and text["text"] == "is it?"


def test_line_breaks_beside_a_tag_only_separate_it(tmp_path):
    row = asked({"type": "text", "text": "see\n<image>\n<audio>\nwell?\n"}) | {"image": "a.png", "audios": ["b.wav"]}
    assert [part.get("text", part["type"]) for part in read(tmp_path, row)[0]["content"]] == ["see", "image", "audio", "well?\n"]


def test_json_in_a_cell_and_answers_that_are_not_learned(tmp_path):
    turns = [*asked("a")["messages"], {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "loss": False}]
    found = read(tmp_path, {"messages": json.dumps(turns)})
    assert [turn.get("loss", True) for turn in found] == [True, True, True, False]


def test_tables_hold_conversations_as_json(tmp_path):
    (tmp_path / "a.png").write_bytes(file_of("image", 0))
    turns = json.dumps(asked("<image>what?")["messages"]).replace('"', '""')
    lines = ["talk,images", f'"{turns}",a.png', f'"{turns}","[""a.png""]"', f'"{turns.replace("<image>", "")}",']
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    rows = open_reader(tmp_path, Source(path="rows.csv", messages="talk"), "train", settings(tmp_path))
    assert [len(files_of(rows.read(row))["messages"]) for row in range(3)] == [1, 1, 0]


def test_media_beside_a_nested_conversation(tmp_path):
    row = {"chat": {"turns": asked("<image>what?")["messages"], "images": ["a.png"]}, "images": ["b.png", "c.png"]}
    (tmp_path / "a.png").write_bytes(file_of("image", 0))
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    rows = open_reader(tmp_path, Source(path="rows.jsonl", messages="chat.turns"), "train", settings(tmp_path))
    assert [file.path.name for file in files_of(rows.read(0))["messages"]] == ["a.png"]


@pytest.mark.parametrize("streaming", [False, True])
def test_lines_through_datasets(tmp_path, streaming):
    """Rows whose files lie beside them, by a data set of Hugging Face that is a folder of this machine."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(file_of("image", 0))
    row = {"messages": as_tags(conversations()[0]), "images": ["a.png"]}
    (tmp_path / "set" / "train.jsonl").write_text(f"{json.dumps(row)}\n")
    source = Source(path="set", format="huggingface", messages="messages", streaming=streaming)
    rows = open_reader(tmp_path, source, "train", settings(tmp_path))
    assert plain(decode(rows.read(0), VIEWS)["messages"])[1][1][0] == ("image", (file_pixels(0), (8, 6, 3)))


def file_pixels(number):
    return np.full((8, 6 + number, 3), 10 * number, np.uint8).tobytes()


def test_equal_media_are_held_out_together(corpus):
    source = Source(path="tags", **SOURCES["tags"], holdout={"test": 0.4})
    splits = [open_reader(corpus, source, split, settings(corpus)) for split in ("train", "test")]
    assert sum(map(len, splits)) == 20 and all(map(len, splits))
    first = [{files[0].path.name for row in range(len(of)) if (files := files_of(of.read(row))["messages"])} for of in splits]
    assert not first[0] & first[1]


# --- what cannot be used


@pytest.mark.parametrize("row, reason, words", [
    (asked({"type": "image", "image": "no.png"}), "missing file", ["no.png"]),
    (asked({"type": "image", "image": "../a.png"}), "unsafe name", ["../a.png"]),
    (asked("<image> and <image>") | {"images": ["a.png"]}, "media do not match", ["wanted 2 for its <image>", "got 1 in images"]),
    (asked("<image>"), "media do not match", ["wanted 1 for its <image>", "got 0 in no column images"]),
    (asked("what?") | {"audios": ["b.wav"]}, "media do not match", ["wanted 0 for its <audio>", "got 1 in audios"]),
    ({"messages": [{"role": "narrator", "content": "a"}]}, "unknown role", ["turn 1", "narrator", "assistant"]),
    (asked({"type": "smell", "smell": "a"}), "unknown part type", ["turn 1", "smell", "image_url"]),
    ({"messages": []}, "empty conversation", ["row 1"]),
    ({"messages": [{"role": "user", "content": "a"}]}, "no assistant turn", ["turns of user"]),
    ({"messages": [{"role": "assistant", "content": "a", "loss": False}]}, "no assistant turn", ["assistant"]),
    (asked("a", answer=""), "empty turn", ["turn 2, of the assistant"]),
    ({"messages": "[{"}, "bad JSON", ["row 1"]),
    ({"messages": "hello"}, "bad JSON", ["row 1"]),
    ({"messages": 3}, "wrong column", ["no list of turns: 3"]),
    ({"messages": [3]}, "wrong column", ["turn 1", "role and content"]),
    (asked({"type": "text", "text": "\ud800"}), "wrong column", ["surrogate"]),
    (asked({"type": "audio", "audio": {"data": "a.wav"}}), "wrong column", ["base64"]),
])  # fmt: skip
def test_what_is_wrong_with_a_conversation_is_said(tmp_path, row, reason, words):
    with pytest.raises(BadSample) as found:
        read(tmp_path, row)
    assert found.value.reason == reason
    assert [word for word in words if word not in found.value.detail] == []


def test_an_answer_alone_is_a_conversation(tmp_path):
    assert read(tmp_path, {"messages": [{"role": "assistant", "content": "a"}]})[0]["role"] == "assistant"


def test_a_conversation_that_is_too_long_is_left_out(tmp_path):
    raw = {"messages": read(tmp_path, asked("a"))}
    tokens = lambda count: Wanted(conversation_tokens=lambda conversation: count)  # noqa: E731
    assert decode(raw, VIEWS, wanted=tokens(64))
    with pytest.raises(BadSample, match="too long: 65 token ids, media among them, more than views.messages.length = 64"):
        decode(raw, VIEWS, wanted=tokens(65))


def test_damaged_media_leave_out_the_conversation(tmp_path):
    raw = {"messages": read(tmp_path, asked({"type": "image", "image": "b.wav"}))}
    with pytest.raises(BadSample, match="unreadable image"):
        decode(raw, VIEWS)


def test_models_that_read_no_conversations_say_which_do():
    source = Source(path="chat", messages="messages", text="text")
    views = Views(messages=MessagesView(), text={"length": 4})
    task = Task(name="chat", source=source, views=views, batch_size=1, objectives=[Contrastive(pairs=[("messages", "text")])])
    with pytest.raises(UserError, match="read no conversations"):
        ModelSettings().to_config(8, [task])
    assert get_modality("messages").tokens(MessagesView(length=7), None, None, "") == 7


# --- what people see of it


def test_a_conversation_is_shown_in_its_order(decoded):
    parts = get_modality("messages").parts(decoded["parts"][1], VIEWS.messages)  # a recording, then a recording and a picture
    assert [kind for kind, _ in parts] == [
        "speaker", "waveform", "text", "speaker", "text", "speaker", "text", "waveform", "text", "picture", "speaker", "text"
    ]  # fmt: skip
    assert [value for kind, value in parts if kind == "speaker"] == ["user", "assistant"] * 2
    waveform, rate = parts[1][1]
    assert rate == 16000 and len(waveform) == 1600 + 200
    (picture_HW3,) = (value for kind, value in parts if kind == "picture")  # picture 3, 8 x 9, is enlarged to 96 pixels
    assert picture_HW3.shape == (96, 108, 3) and (picture_HW3 == 30).all()
    (strip,) = (value for kind, value in get_modality("messages").parts(decoded["parts"][2], VIEWS.messages) if kind == "picture")
    assert strip.shape == (96, 96 + 2 + 96, 3)


def test_large_pictures_are_shown_smaller_and_answers_say_that_they_are_not_learned():
    image = np.zeros((1024, 512, 3), np.uint8)
    turn = {"role": "assistant", "content": [{"type": "image", "image": image}], "loss": False}
    [(_, who), (_, picture_HW3)] = get_modality("messages").parts([turn], VIEWS.messages)
    assert who == "assistant, not learned" and picture_HW3.shape == (256, 128, 3)


def test_a_check_counts_turns_media_and_what_is_left_out(tmp_path):
    (tmp_path / "a.png").write_bytes(file_of("image", 0))
    (tmp_path / "b.wav").write_bytes(file_of("audio", 0))
    rows = [
        asked("<image><audio>") | {"images": ["a.png"], "audios": ["b.wav"]}, asked("<image>") | {"images": ["no.png"]},
        asked("a"), asked(*["long"] * 70),
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = Source(path="rows.jsonl", messages="messages")
    needs = SimpleNamespace(label=False, classes=None)
    task = SimpleNamespace(name="chat", views=VIEWS, needs=needs)
    count = CountingProcessor().conversation_tokens
    found = look(open_reader(tmp_path, source, "train", settings(tmp_path)), [task], conversation_tokens=count)
    assert found.rows == 4 and found.left_out == {"chat": {"missing file": 1, "too long": 1}}
    spreads = {name: (len(spread), spread.sum) for name, spread in found.spreads.items()}
    assert spreads["turns"] == (3, 6) and spreads["images"] == (3, 1) and spreads["recordings"] == (3, 1)
    assert spreads["audio seconds"] == (1, 0.1)  # 800 samples at 8 kHz
    assert spreads["token ids"] == (3, 3 + 2 + 71) and found.kinds == {"messages": {".png": 1, ".wav": 1}}


def test_a_table_of_conversations_says_what_is_learned():
    tokenizer = SimpleNamespace(
        decode=lambda ids: "".join("<image>" if i == 9 else str(int(i)) for i in ids),
        batch_decode=lambda rows: [tokenizer.decode(row) for row in rows],
    )
    ids_BL = torch.tensor([[9, 9, 9, 4, 5], [1, 2, 0, 0, 0]])
    inputs = {"input_ids": ids_BL, "attention_mask": (ids_BL > 0).long()}
    labels_BL = torch.tensor([[-100, -100, -100, -100, 5], [-100, 2, -100, -100, -100]])
    table = batch_captions(Batch("chat", {"messages": inputs}, {"labels": labels_BL}), tokenizer, 2)
    assert table.splitlines()[2:] == ["| 1 | &lt;image&gt; x 3 45 | 5 |", "| 2 | 12 | 2 |"]


# --- to the model's inputs


class CountingProcessor:
    """A processor whose ids are the lengths of texts, and 1000 + the size of media."""

    tokenizer = None

    @property
    def conversations(self):
        return self

    def ids(self, conversation):
        value = lambda part: len(part["text"]) if part["type"] == "text" else 1000 + part[part["type"]].size  # noqa: E731
        return [value(part) for turn in conversation for part in turn["content"]]

    def conversation_tokens(self, conversation):
        return len(self.ids(conversation))

    def encode(self, samples, *, length, loss, rows):
        rows = [self.ids(sample) for sample in samples]
        ids_BL, mask_BL = (np.zeros((len(rows), max(map(len, rows))), np.int64) for _ in range(2))
        for row, ids in enumerate(rows):
            ids_BL[row, : len(ids)], mask_BL[row, : len(ids)] = ids, 1
        return {"input_ids": ids_BL, "attention_mask": mask_BL, "labels": np.where(mask_BL > 0, ids_BL, -100)}


def test_a_batch_has_what_the_processor_makes(decoded):
    samples = [{"messages": decoded["parts"][row]} for row in (0, 4)]
    batch = Collator(CountingProcessor())("chat", VIEWS, samples)
    # "be brief.", an image of 8 x 6 x 3, "what is 0?", "it is 0."; "what is 4?", "it is 4."
    assert batch.inputs["messages"]["input_ids"].tolist() == [[9, 1144, 10, 8], [10, 8, 0, 0]]
    assert batch.targets["labels"].tolist() == [[9, 1144, 10, 8], [10, 8, -100, -100]]
    assert batch.report.padding == {"messages": 0.25}
    assert Collator(CountingProcessor()).conversation_tokens(decoded["parts"][0]) == 4


def test_conversations_of_every_row_are_usable_as_batches(corpus):
    """With the bytes of all media that a row holds counted."""
    task = SimpleNamespace(name="chat", augment=None)
    usable = UsableSamples(task, VIEWS, [reader(corpus, "parquet")], 0, MediaCache(0), Wanted())
    found = usable.at([SampleIndex(0, 0, row) for row in range(20)])
    assert len(found) == 20 and usable.rejected == []
    assert all(one.sample["messages"] for one in found)
