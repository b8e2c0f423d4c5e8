"""Conversations as a run of Uni-MoE reads them: the same ids, labels and media from every spelling, and as by the processor."""

import re

import numpy as np
import pytest
import torch

from helpers.chat_run import make_chat_run
from helpers.conversations import SOURCES, write_all
from imp_ds.commands.show_command import show
from imp_ds.data.corpus import open_corpus
from imp_ds.data.decoding import decode
from imp_ds.data.inspect.check import look
from imp_ds.data.loading.collation import Collator
from imp_ds.data.loading.step_batches import StepBatches
from imp_ds.families import family_of
from imp_ds.models.uni_moe import UniMoeProcessor
from imp_ds.train.recording.first_samples import first_samples
from imp_ds.train.recording.samples import batch_captions
from imp_ds.train.schedule import build_schedule


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def processor(root):
    run = make_chat_run(root)
    return family_of(run).processor(run, open_corpus(run))


def all_of(root, name):
    """All conversations of a spelling, decoded."""
    run = make_chat_run(root, name)
    (reader,) = open_corpus(run)["chat"]
    return [decode(reader.read(row), run.tasks[0].views)["messages"] for row in range(len(reader))]


def as_batch(root, processor, name):
    """All conversations of a spelling in one batch."""
    return Collator(processor)("chat", make_chat_run(root).tasks[0].views, [{"messages": one} for one in all_of(root, name)])


def test_every_spelling_gives_the_same_ids_labels_and_media(root, processor):
    wanted = as_batch(root, processor, "parts")
    assert {"pixel_values", "pixel_values_videos", "input_features"} < wanted.inputs["messages"].keys()
    for name in SOURCES:
        found = as_batch(root, processor, name)
        assert found.inputs["messages"].keys() == wanted.inputs["messages"].keys() and found.targets.keys() == {"labels"}
        for key, value in wanted.inputs["messages"].items():
            assert torch.equal(found.inputs["messages"][key], value), (name, key)
        assert torch.equal(found.targets["labels"], wanted.targets["labels"])


def test_training_learns_what_the_exported_processor_makes(root, processor, tmp_path):
    """`apply_chat_template` of a processor that was saved and loaded gives training's ids and media."""
    processor.save_pretrained(tmp_path)
    loaded = UniMoeProcessor.from_pretrained(tmp_path)
    batch = as_batch(root, processor, "parts")
    inputs, labels_BL = batch.inputs["messages"], batch.targets["labels"]
    for row, conversation in enumerate(all_of(root, "parts")):
        found = loaded.apply_chat_template([conversation], tokenize=True, return_dict=True)
        ids = found["input_ids"][0]
        count = int(inputs["attention_mask"][row].sum())
        assert inputs["input_ids"][row, :count].tolist() == list(ids)
        for key, counted in (("pixel_values", "image"), ("pixel_values_videos", "video"), ("input_features", "audio")):
            own = inputs[key][row, : int(inputs[f"{counted}_count"][row])].numpy()
            assert (len(own) == 0 and key not in found) or np.array_equal(own, np.asarray(found[key]))
        answers = [part["text"] for turn in conversation if turn["role"] == "assistant" for part in turn["content"]]
        learned = loaded.tokenizer.decode(labels_BL[row][labels_BL[row] >= 0])
        assert [answer.split() for answer in learned.split("<|end|>")[:-1]] == [answer.split() for answer in answers]


def test_too_long_is_what_the_processor_counts(root, processor):
    conversations = all_of(root, "parts")
    counts = [Collator(processor).conversation_tokens(one) for one in conversations]
    batch = as_batch(root, processor, "parts")
    assert counts == batch.inputs["messages"]["attention_mask"].sum(1).tolist()
    limit = sorted(counts)[9]
    run = make_chat_run(root, view={"length": limit})
    (reader,) = open_corpus(run)["chat"]
    found = look(reader, run.tasks, processor.tokenizer, conversation_tokens=processor.conversation_tokens)
    assert found.left_out["chat"] == {"too long": sum(count > limit for count in counts)}
    assert found.spreads["token ids"].high == max(counts)


def test_chunks_of_long_audio_overlap_as_far_as_is_asked(root, processor):
    """Chunks of 100 samples, a new one each 50: of 100 samples one, of 101 two, of 250 four, 0:100, 50:150, 100:200, 150:250.
    Without overlap 100 samples are one, 101 two and 250 three. As many tokens are counted as the model gets."""
    rate = processor.feature_extractor.sampling_rate
    made = UniMoeProcessor(
        processor.tokenizer, feature_extractor=processor.feature_extractor, media_tokens={"audio": 3},
        chunk_seconds=100 / rate, chunk_overlap=0.5,
    )  # fmt: skip
    waves = [np.arange(length, dtype=np.float32) for length in (100, 101, 250)]
    inputs, counts = made.media_inputs("audio", waves)
    assert counts == [1, 2, 4] and len(inputs["input_features"]) == 7
    parts = [made.media_inputs("audio", [waves[2][begin : begin + 100]])[0]["input_features"] for begin in (0, 50, 100, 150)]
    assert np.array_equal(inputs["input_features"][3:], np.concatenate(parts))
    said = [{"role": "user", "content": [{"type": "audio", "audio": waves[2]}]}, {"role": "assistant", "content": "a"}]
    ids = made.encode([said], length=64, loss="all")["input_ids"]
    assert (ids == made.audio_token_id).sum() == 4 * 3
    assert made.conversation_tokens(said) == made.encode([said], length=64, loss="all")["attention_mask"].sum()
    made.chunk_overlap = 0.0
    assert made.media_inputs("audio", waves)[1] == [1, 2, 3]


def test_the_page_shows_conversations_turn_by_turn(root, tmp_path):
    out = tmp_path / "page.html"
    assert show(make_chat_run(root, view={"pack": 4}), "train", 4, None, out) == f"wrote {out}: 1 views of 1 tasks"
    cards = re.findall("<figure>(.*?)</figure>", out.read_text(), re.S)
    assert len(cards) == 4
    for card in cards:
        number = re.search(r"what is (\d+)\?", card)[1]
        assert f"<p>it is {number}.</p>" in card and "<p><b>user</b></p>" in card
        assert f"it is {number}." in re.search("learned: <b>(.*?)</b>", card, re.S)[1]
    assert any("<audio controls" in card for card in cards) and any("<img" in card for card in cards)


def test_the_first_samples_are_logged(root, processor):
    run = make_chat_run(root)
    batches = StepBatches(run.tasks, build_schedule("rotation", run.tasks, 0), open_corpus(run), Collator(processor), seed=0)
    samples, waveforms = first_samples(batches, 4)
    table = batch_captions(samples["chat"], processor.tokenizer, 4)
    assert "&lt;image&gt; x 4" in table and len(table.splitlines()) == 2 + 4
    assert waveforms["chat"] and all(rate == 16000 for _, rate in waveforms["chat"])
