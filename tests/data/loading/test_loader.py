"""The loader: the same samples for any number of ranks and workers and after a resume; failures end in an error, not a hang."""

import os
import pickle
import signal
import time

import numpy as np
import pytest
import torch

from helpers.media_files import write_corpus
from helpers.small_loader import IMAGES, SPEECH, STEPS, TASKS, flat, loader, processor
from imp_ds.config import DataSettings
from imp_ds.data.loading.collation import Collator
from imp_ds.data.loading.evaluation_batches import evaluation_batches
from imp_ds.data.loading.step_batches import StepBatches
from imp_ds.data.order.order import SampleIndex
from imp_ds.data.sources import open_reader
from imp_ds.errors import UserError
from imp_ds.modalities.audio.view import AudioView
from imp_ds.modalities.text.view import TextView
from imp_ds.modalities.views import Views
from imp_ds.modalities.vision.view import VisionView
from imp_ds.objectives import Classification
from imp_ds.tasks import Task


def captions(batch):
    return processor().tokenizer.batch_decode(batch.inputs["text"]["input_ids"], skip_special_tokens=True)


def assert_equal(left, right):
    assert [b.task for b in left] == [b.task for b in right]
    for a, b in zip(left, right):
        a, b = flat(a), flat(b)
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype
            torch.testing.assert_close(a[name], b[name], rtol=0, atol=0, msg=name)


def test_batches_hold_what_the_task_asks_for(root):
    batches = list(loader(root))
    # intervals 1 and 2: sweeps are (image_text), (image_text, speech), ...: every third step is speech.
    assert [b.task for b in batches[:6]] == ["image_text", "image_text", "speech"] * 2
    assert flat(batches[0]).keys() == {
        "vision.pixel_values", "vision.pixel_positions", "text.input_ids", "text.attention_mask", "targets.label", "key"
    }  # fmt: skip
    assert batches[0].inputs["vision"]["pixel_values"].dtype == torch.uint8
    assert batches[0].inputs["vision"]["pixel_values"].shape == (8, 8, 192)  # half of 16 tokens dropped
    assert flat(batches[2]).keys() == {"audio.input_features", "audio.feature_positions", "targets.label", "key"}
    # The corpus is made so that row r is grey 10 r and has label r % 10: pictures and labels belong together.
    grey = batches[0].inputs["vision"]["pixel_values"][:, 0, 0].int()
    assert torch.equal(grey // 10 % 10, batches[0].targets["label"].int())
    assert [int(caption.split()[-1]) for caption in captions(batches[0])] == (grey // 10).tolist()
    assert batches[2].inputs["audio"]["input_features"].shape == (4, 4, 256)


def test_an_epoch_shows_every_row_once_and_orders_differ(root):
    batches = loader(root).batches
    # image_text trains at steps 0, 1, 3, 4, 6, ... with 8 of 20 rows: 5 occurrences are 40 samples, two whole epochs.
    seen = [index for step in (0, 1, 3, 4, 6) for index in batches.sample_indices(step)]
    assert [index.epoch for index in seen] == [0] * 20 + [1] * 20  # the third batch spans both
    orders = [[index.row for index in seen if index.epoch == epoch] for epoch in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(20))
    assert orders[0] != orders[1] and orders[0] != list(range(20))
    speech = [index.row for step in (2, 5, 8, 11) for index in batches.sample_indices(step)]
    assert speech != orders[0][:16]  # each task has its own order


def test_a_batch_larger_than_its_source(root):
    task = TASKS[1].model_copy(update=dict(batch_size=50, interval=1))
    # 50 positions of 20 rows: two epochs and a half.
    sample_indices = loader(root, tasks=[task]).batches.sample_indices(0)
    assert [sum(index.epoch == epoch for index in sample_indices) for epoch in range(3)] == [20, 20, 10]
    assert len(set(sample_indices)) == 50


def test_only_whole_batches_of_an_epoch_where_asked(root):
    task = TASKS[1].model_copy(update=dict(batch_size=8, interval=1, drop_last=True))
    # 20 rows hold two batches of 8; the third is the first of the next epoch
    batches = loader(root, tasks=[task]).batches
    assert [{index.epoch for index in batches.sample_indices(step)} for step in range(4)] == [{0}, {0}, {1}, {1}]
    with pytest.raises(UserError, match="less than one batch"):
        loader(root, tasks=[task.model_copy(update=dict(batch_size=24))])


def test_a_task_may_mix_sources(root):
    other = IMAGES.model_copy(update=dict(weight=3.0))
    task = TASKS[0].model_copy(update=dict(additional_sources=[other]))
    batches = loader(root, tasks=[task]).batches
    sources = [index.source for step in range(512) for index in batches.sample_indices(step)]
    assert np.bincount(sources).tolist() == [1024, 3072]  # 1 : 3 of 4096 positions
    assert batches[0].report.keys == tuple(f"{index.row}.png" for index in batches.sample_indices(0))


def test_each_step_draws_one_of_the_views(root):
    """Three quarters of the steps see whole pictures of 32 x 32 (16 tokens), a quarter such of 16 x 16 (4 tokens)."""
    views = [Views(vision=VisionView(height=side, width=side), text=TextView(), weight=w) for side, w in ((32, 3.0), (16, 1.0))]
    task = TASKS[0].model_copy(update=dict(views=views[0], additional_views=views[1:]))
    full = loader(root, tasks=[task], stop_step=40)
    tokens = [batch.inputs["vision"]["pixel_values"].shape[1] for batch in full]
    assert set(tokens) == {16, 4} and 22 <= tokens.count(16) <= 38  # 30 of 40 expected, 2.7 the deviation
    assert [16 if batch.report.view == 0 else 4 for batch in loader(root, tasks=[task], stop_step=40)] == tokens
    for rank in (0, 1):
        ranks = loader(root, tasks=[task], stop_step=40, rank=rank, world=2, workers=1)
        assert [batch.inputs["vision"]["pixel_values"].shape[1] for batch in ranks] == tokens


@pytest.mark.parametrize("world", [2, 4])
def test_the_global_batch_does_not_depend_on_the_ranks(root, world):
    full = list(loader(root))
    ranks = [list(loader(root, rank=rank, world=world)) for rank in range(world)]
    for step, batch in enumerate(full):
        for name, tensor in flat(batch).items():
            joined = torch.cat([flat(rank[step])[name] for rank in ranks])
            torch.testing.assert_close(joined, tensor)


def test_every_sample_of_every_step_has_a_key(root):
    keys = torch.cat([batch.key_B for batch in loader(root)])
    # of 12 steps every third is speech: 8 batches of 8 and 4 of 4
    assert keys.dtype == torch.int64 and len(keys) == len(set(keys.tolist())) == 8 * 8 + 4 * 4
    batches = loader(root, rank=1, world=2).batches
    assert torch.equal(batches[0].key_B, keys[4:8])
    assert torch.equal(batches.first_of(0, 2).key_B, keys[4:6])


POSITIONS = {"image": "pixel_positions", "sound": "feature_positions"}


def kept_tokens(batches) -> dict[tuple, list]:
    """(step, row) -> the positions of the tokens that were not dropped. The label of a corpus of ten rows is the row."""
    return {
        (step, int(label)): positions.tolist()
        for step, batch in enumerate(batches)
        for label, positions in zip(batch.targets["label"], next(iter(batch.inputs.values()))[POSITIONS[batch.task]])
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_dropped_tokens_do_not_depend_on_the_ranks(tmp_path, workers):
    """Eight steps of half of the tokens of pictures (8 of 16) and recordings (2 of 4), over one, two and four ranks."""
    root = write_corpus(tmp_path, rows=10, splits=("train",))
    label = [Classification(modality="vision", num_classes=10)], [Classification(modality="audio", num_classes=10)]
    tasks = [
        Task(name="image", source=IMAGES, batch_size=4, objectives=label[0],
             views=Views(vision=VisionView(height=32, width=32, drop_rate=0.5))),
        Task(name="sound", source=SPEECH, batch_size=4, objectives=label[1],
             views=Views(audio=AudioView(seconds=0.32, drop_rate=0.5))),
    ]  # fmt: skip
    found = {}
    for world in (1, 2, 4):
        ranks = [loader(root, tasks=tasks, rank=r, world=world, workers=workers, stop_step=8) for r in range(world)]
        parts = [kept_tokens(rank) for rank in ranks]
        found[world] = {position: kept for part in parts for position, kept in part.items()}
        assert len(found[world]) == sum(map(len, parts)) == 8 * 4  # each sample on one rank
    assert found[1] == found[2] == found[4]
    assert {len(kept) for kept in found[1].values()} == {8, 2}
    pictures = {str(kept) for (step, _), kept in found[1].items() if step % 2 == 0}
    assert len(pictures) >= 15  # of 16 draws, of 12870 ways to keep 8 of 16 tokens


def test_resuming_gives_the_tail(root):
    full = list(loader(root))
    for start in (1, 5, STEPS - 1):
        assert_equal(list(loader(root, start_step=start)), full[start:])
    assert list(loader(root, start_step=STEPS)) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(root, workers):
    many = loader(root, workers=workers, prefetch=3)
    assert len(many) == STEPS
    assert_equal(list(many), list(loader(root)))
    assert many.wait_seconds > 0 and many.step == STEPS and len(many) == 0


def test_the_cache_changes_nothing(root):
    assert_equal(list(loader(root, cache_mb=0)), list(loader(root, cache_mb=100)))


def test_the_seed_changes_the_batches(root):
    first, other = next(loader(root, seed=7)), next(loader(root, seed=8))
    assert not torch.equal(first.targets["label"], other.targets["label"])
    assert not set(first.key_B.tolist()) & set(other.key_B.tolist())


def test_a_sample_looks_the_same_wherever_it_falls(root):
    # Drawn alone or in a batch of eight, row and epoch fix caption and kept tokens.
    full = next(loader(root))
    small = [TASKS[0].model_copy(update=dict(batch_size=1)), TASKS[1]]
    alone = [b for b in loader(root, tasks=small) if b.task == "image_text"][:8]
    for name in ("vision.pixel_positions", "text.input_ids"):
        torch.testing.assert_close(torch.cat([flat(b)[name] for b in alone]), flat(full)[name])
    positions = full.inputs["vision"]["pixel_positions"]
    assert (positions != positions[:1]).any()  # and the samples of a batch draw different tokens


def test_a_batch_that_the_ranks_cannot_share_is_refused(root):
    with pytest.raises(UserError, match="image_text.*3 ranks"):
        loader(root, world=3)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_is_left_out(tmp_path, workers):
    root = write_corpus(tmp_path, rows=10, splits=("train",))
    full = list(loader(root))
    (root / "images/train/1.png").write_bytes(b"not a picture")
    (root / "images/train/2.png").unlink()
    found, rejected = list(loader(root, workers=workers)), []
    for before, batch in zip(full, found, strict=True):
        # whoever was not replaced is what it was
        same = [a == b for a, b in zip(before.report.keys, batch.report.keys)]
        rejected += batch.report.rejected
        for name, tensor in flat(batch).items():
            assert torch.equal(tensor[same], flat(before)[name][same])
        assert sum(same) >= len(same) - len(batch.report.rejected)
    assert {(rejection.key, rejection.reason) for rejection in rejected} == {
        (key, reason) for key, reason in (("1.png", "unreadable image"), ("2.png", "missing file"))
    }  # fmt: skip
    assert {rejection.source for rejection in rejected} == {loader(root).batches.readers["image_text"][0].name}


def test_a_source_without_a_usable_sample_is_named(tmp_path):
    root = write_corpus(tmp_path, rows=3, splits=("train",))
    for row in range(3):
        (root / f"images/train/{row}.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match="image_text: 100 samples one after another"):
        list(loader(root))


class Misbehaving(Collator):
    """Does what it is asked to at the fourth batch of its process."""

    def __init__(self, action):
        super().__init__(processor())
        self.action, self.calls = action, 0

    def __call__(self, *arguments, **settings):
        self.calls += 1
        if self.calls == 4:
            self.action()
        return super().__call__(*arguments, **settings)


def test_a_killed_worker_is_an_error(root):
    start = time.monotonic()
    with pytest.raises(UserError, match=r"no batch for step [0-3]\n.*exited unexpectedly"):
        list(loader(root, workers=1, collator=Misbehaving(lambda: os.kill(os.getpid(), signal.SIGKILL))))
    assert time.monotonic() - start < 30


def test_a_wait_that_is_too_long_is_an_error(root):
    start = time.monotonic()
    with pytest.raises(UserError, match=r"no batch for step 3\n.*a wait of 3 s"):
        list(loader(root, workers=1, timeout_s=3, collator=Misbehaving(lambda: time.sleep(60))))
    assert time.monotonic() - start < 30


def test_a_bug_in_a_worker_keeps_its_traceback(root):
    def fail():
        raise RuntimeError("a bug of ours")

    with pytest.raises(RuntimeError, match="a bug of ours") as error:
        list(loader(root, workers=1, collator=Misbehaving(fail)))
    assert not isinstance(error.value, UserError)


def test_closing_ends_the_workers_and_may_be_taken_up_again(root):
    full = list(loader(root))
    some = loader(root, workers=2)
    first = [next(some) for _ in range(3)]
    workers = some._pool.pids
    some.close()
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}") for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in workers)
    assert_equal(first + list(some), full)


def test_recordings_of_mixed_rates_meet_in_one_batch():
    # One tone at three rates; the spectrogram of each is that of the tone at 16 kHz, but for the edges of the resampling.
    def tone(rate):
        return (0.5 * np.sin(2 * np.pi * 1000 * np.arange(round(0.32 * rate)) / rate)).astype(np.float32), rate

    samples = [dict(audio=tone(rate)) for rate in (16000, 8000, 44100)]
    features = Collator(processor())("t", Views(audio=AudioView(seconds=0.32)), samples).inputs["audio"]["input_features"]
    loudest = features.reshape(3, 2, 2, 16, 16)[:, 0, :, 8].reshape(3, 32).argmax(1)  # mel bin of the ninth frame
    assert loudest.tolist() == [int(loudest[0])] * 3


@pytest.mark.parametrize("view", [AudioView(seconds=0.32, drop_rate=0.5), AudioView(seconds=0.16)])
def test_what_is_drawn_for_a_recording_is_its_own(view, monkeypatch):
    monkeypatch.setattr(processor().feature_extractor, "crop", "random")
    noise = np.random.default_rng(0).normal(size=5120).astype(np.float32) / 4
    samples, views = [dict(audio=(noise, 16000))] * 6, Views(audio=view)

    def features(seeds):
        rngs = [np.random.default_rng(seed) for seed in seeds]
        return Collator(processor())("t", views, samples[: len(seeds)], rngs).inputs["audio"]["input_features"]

    together = features(range(6))
    torch.testing.assert_close(torch.cat([features([seed]) for seed in range(6)]), together, rtol=0, atol=0)
    assert len({row.sum().item() for row in together}) > 1
    calm = Collator(processor())("t", views, samples).inputs["audio"]["input_features"]  # evaluation draws nothing
    assert torch.equal(calm[0], calm[1]) and calm.shape[1] >= together.shape[1]


def images(root):
    return open_reader(root, IMAGES, "train", DataSettings(root=str(root), cache_dir=str(root / "cache")))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_covers_the_split_in_equal_shapes(root, world):
    views = Views(vision=VisionView(height=32, width=32, drop_rate=0.5), text=TextView())
    collator = Collator(processor())
    settings = dict(batch_size=3, world=world)
    ranks = [list(evaluation_batches(images(root), collator, views, rank=rank, **settings)) for rank in range(world)]
    # 20 rows in blocks of 3 are 7 blocks, dealt in turn
    assert [len(batches) for batches in ranks] == {1: [7], 2: [4, 3], 3: [3, 2, 2]}[world]
    assert {b.inputs["vision"]["pixel_values"].shape for batches in ranks for b in batches} == {(3, 16, 192)}  # nothing dropped
    rows = [b.targets["index"][b.targets["valid"]] for batches in ranks for b in batches]
    assert sorted(torch.cat(rows).tolist()) == list(range(20))
    for batch in (b for batches in ranks for b in batches):
        assert batch.key_B is None
        assert torch.equal(batch.targets["label"], batch.targets["index"] % 10)
        assert batch.targets["index"].dtype == torch.int64 and batch.targets["valid"].dtype == torch.bool
        assert set(batch.targets["index"][~batch.targets["valid"]].tolist()) <= {19}
        assert captions(batch) == [f"images {i}" for i in batch.targets["index"].tolist()]  # the first caption


def test_evaluation_leaves_out_what_it_cannot_read(tmp_path):
    root = write_corpus(tmp_path, rows=5, splits=("train",))
    for row in (0, 1, 4):
        (root / f"images/train/{row}.png").write_bytes(b"not a picture")
    views, collator = Views(vision=VisionView(height=32, width=32)), Collator(processor())
    # rows 2 and 3 are left; of two ranks with blocks of 2 rows, the second has them, the first has one that counts for nothing
    first, second = (list(evaluation_batches(images(root), collator, views, batch_size=2, rank=r, world=2)) for r in (0, 1))
    assert [b.targets["index"].tolist() for b in second] == [[2, 3]] and second[0].targets["valid"].all()
    assert [b.targets["index"].tolist() for b in first] == [[2, 2]] and not first[0].targets["valid"].any()


def test_a_long_recording_is_taken_in_windows(root):
    """Row i of the speech is 3200 + 100 i samples at 16 kHz; windows of 0.1 s have 1600: 2 for row 0, 3 for the others."""
    reader = open_reader(root, SPEECH, "train", DataSettings(root=str(root), cache_dir=str(root / "cache")))
    batches = list(evaluation_batches(reader, Collator(processor()), Views(audio=AudioView(seconds=0.1)), batch_size=8))
    rows = torch.cat([b.targets["index"][b.targets["valid"]] for b in batches]).tolist()
    assert rows == [0] * 2 + [row for row in range(1, 17) for _ in range(3)] + [row for row in range(17, 20) for _ in range(4)]


def test_step_batches_can_be_sent_to_a_process(root):
    batches = loader(root).batches
    batches.collator = None
    copy = pickle.loads(pickle.dumps(batches))
    assert isinstance(copy, StepBatches)
    assert copy.sample_indices(4) == batches.sample_indices(4) and isinstance(copy.sample_indices(4)[0], SampleIndex)
