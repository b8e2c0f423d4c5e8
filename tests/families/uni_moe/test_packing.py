"""Conversations packed into rows: less padding, and the loss and the gradients of one conversation a row."""

import numpy as np
import pytest
import torch

from helpers.chat_run import TEXT, make_chat_run
from helpers.conversations import write_all
from imp_ds.data.corpus import open_corpus
from imp_ds.data.decoding import decode
from imp_ds.data.files.file_cache import FileCache
from imp_ds.data.loading.collation import Collator
from imp_ds.data.loading.step_batches import StepBatches
from imp_ds.data.order.subset import Subset
from imp_ds.data.sources.lengths import open_lengths
from imp_ds.errors import UserError
from imp_ds.families import family_of
from imp_ds.models.uni_moe.batch_rows import pack
from imp_ds.tasks import Batch
from imp_ds.train.engine.micro_batches import split
from imp_ds.train.schedule import build_schedule
from imp_ds.train.start import open_batches

MODELS = {
    "llama": {},
    "qwen3": dict(model_type="qwen3", head_dim=16),
    "mistral": dict(model_type="mistral", sliding_window=None, head_dim=16),
    "qwen3_moe": dict(
        model_type="qwen3_moe", head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, decoder_sparse_step=1
    ),
    "mixtral": dict(model_type="mixtral", num_local_experts=4, num_experts_per_tok=2, sliding_window=None),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = write_all(tmp_path_factory.mktemp("packed"))
    run = make_chat_run(root, batch_size=20)
    readers = open_corpus(run)
    return run, readers, family_of(run).processor(run, readers)


def batch_of(corpus, pack: int):
    """All conversations."""
    run, readers, processor = corpus
    views = run.tasks[0].views.model_copy()
    views.messages = views.messages.model_copy(update={"pack": pack})
    tasks = [run.tasks[0].model_copy(update={"views": views})]
    return StepBatches(tasks, build_schedule("rotation", tasks, 0), readers, Collator(processor), seed=0, cache_mb=0)[0]


def model_of(corpus, **changes):
    run, _, processor = corpus
    run = run.model_copy(update={"model": run.model.model_copy(update={"language_model": {**TEXT, **changes}})})
    family = family_of(run)
    return family.build(family.config(run, processor), seed=0, ep_size=1)


def test_rows_are_of_equal_length_and_lose_nothing():
    of = lambda number, length: {  # noqa: E731
        "input_ids": np.full(length, number), "labels": np.full(length, number), "attention_mask": [1] * length,
        **({"pixel_values": np.full((number, 2), number)} if number else {}),
    }  # fmt: skip
    first, second = pack([of(0, 7), of(1, 3), of(2, 4), of(3, 6)], 2)
    # the longest first: 7 | 6, then 4 to the second (6 < 7), and 3 to the first: 10 and 10
    assert first["input_ids"].tolist() == [0] * 7 + [1] * 3 and second["input_ids"].tolist() == [2] * 4 + [3] * 6
    assert first["position_ids"].tolist() == [*range(7), *range(3)]
    assert first["labels"].tolist() == [-100, *[0] * 6, -100, 1, 1] and second["attention_mask"].tolist() == [1] * 10
    assert first["pixel_values"].tolist() == [[1, 1]] and second["pixel_values"].tolist() == [[2, 2]] * 2 + [[3, 3]] * 3


def test_there_is_less_padding_and_every_medium(corpus):
    plain, packed = batch_of(corpus, 1), batch_of(corpus, 4)
    inputs = packed.inputs["messages"]
    assert inputs["input_ids"].shape[0] == 5 and len(packed.report.keys) == 20
    assert packed.report.padding["messages"] < 0.1 < plain.report.padding["messages"]
    for name in ("attention_mask", "image_count", "video_count", "audio_count"):
        assert inputs[name].sum() == plain.inputs["messages"][name].sum()
    assert (packed.targets["labels"] >= 0).sum() == (plain.targets["labels"] >= 0).sum()


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_those_of_one_conversation_a_row(corpus, name):
    model, found = model_of(corpus, **MODELS[name]), {}
    for pack_ in (1, 4):
        model.zero_grad()
        output = model(batch_of(corpus, pack_))
        output.loss.backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found[pack_] = output, grads
    (plain, plain_grads), (packed, packed_grads) = found.values()
    assert packed.loss.item() == pytest.approx(plain.loss.item(), rel=1e-6)
    assert torch.equal(packed.metrics["accuracy/next_token"], plain.metrics["accuracy/next_token"])
    assert packed_grads.keys() == plain_grads.keys()
    for parameter, gradient in plain_grads.items():
        torch.testing.assert_close(packed_grads[parameter], gradient, rtol=1e-4, atol=1e-6, msg=parameter)


def test_fewer_rows_than_micro_batches_are_refused(corpus):
    packed = batch_of(corpus, 10)
    assert [len(part.targets["labels"]) for part in split(packed, 2)] == [1, 1]
    with pytest.raises(UserError, match="fewer rows than micro-batches"):
        split(Batch("chat", packed.inputs, packed.targets), 3)


def test_batches_of_like_length_have_less_padding(corpus, tmp_path):
    """Through the index of lengths that training makes, once."""
    run, readers, processor = corpus
    run = run.override([f"data.cache_dir={tmp_path}", "tasks.chat.batch_size=2"])
    run.tasks[0] = run.tasks[0].model_copy(update={"group_by_length": 10})
    shares = []
    for tasks in ([run.tasks[0].model_copy(update={"group_by_length": 0})], run.tasks):
        batches = open_batches(run.model_copy(update={"tasks": tasks}), readers, Collator(processor))
        found = [batches[step] for step in range(10)]
        assert len({key for batch in found for key in batch.report.keys}) == 20
        shares.append(np.mean([batch.report.padding["messages"] for batch in found]))
    assert shares[1] < 0.6 * shares[0]
    (lengths,) = batches.orders["chat"].lengths
    samples = [decode(readers["chat"][0].read(row), run.tasks[0].views)["messages"] for row in range(20)]
    counts = [processor.conversation_tokens(sample) for sample in samples]
    assert np.corrcoef([lengths[row] for row in range(20)], counts)[0, 1] > 0.8
    written = sorted((tmp_path / "files").rglob("*"))
    open_batches(run, readers, Collator(processor))
    assert sorted((tmp_path / "files").rglob("*")) == written  # found, not made anew


def test_lengths_of_some_rows_are_those_of_the_rows(corpus, tmp_path):
    run, readers, processor = corpus
    (reader,) = readers["chat"]
    every = open_lengths(reader, "messages", processor, FileCache(tmp_path, 2**24))
    some = open_lengths(Subset(Subset(reader, range(1, 20, 2)), [3, 1]), "messages", processor, FileCache(tmp_path, 2**24))
    assert [some[0], some[1]] == [every[7], every[3]]
