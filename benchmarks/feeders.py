"""The contestants of benchmarks/loader.py: each brings the bytes of samples to the same work, and its batches to one process.

The work is `prepared`: decode, crop, mirror or mask, cut into patches, batch, by this project's own functions. So only the
feeding differs: how bytes are found, how samples get their order, how batches reach the process that trains.

Each contestant has a method `rate(seconds)`: samples a second, measured after a start of a few batches that is not counted.
"""

import multiprocessing
import os
import tarfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from corpora import Corpus
from torch.utils.data import DataLoader, RandomSampler

from imp_ds.data.decoding import decode_all
from imp_ds.data.loading.collation import Collator
from imp_ds.data.loading.loader import RotatingLoader
from imp_ds.data.loading.step_batches import StepBatches
from imp_ds.data.sources import open_reader
from imp_ds.modalities.audio.recordings import open_recording
from imp_ds.modalities.media import Media
from imp_ds.modalities.media_cache import MediaCache
from imp_ds.modalities.modality import Wanted
from imp_ds.modalities.vision.augmentation import mirror
from imp_ds.modalities.vision.clips import pixels_needed
from imp_ds.modalities.vision.framing import random_box, resize
from imp_ds.modalities.vision.image import read_image
from imp_ds.modalities.vision.video import VIDEOS, read_video
from imp_ds.models.imp.feature_extraction_imp import ImpFeatureExtractor
from imp_ds.models.imp.image_processing_imp import ImpImageProcessor
from imp_ds.tasks import Batch, Task

PREFETCH = 2  # batches that a worker prepares ahead, of all loaders
_ENDLESS = 1 << 40
_SHUFFLED = 1000  # samples in webdataset's buffer


def collator(corpus: Corpus) -> Collator:
    """For the patches of a corpus' model."""
    log_mel = dict(sampling_rate=16000, frame_length=400, hop_length=160, mel_bins=64)
    extractor = ImpFeatureExtractor(log_mel=log_mel, seconds=0.96, patch=(8, 16))
    return Collator(SimpleNamespace(image_processor=ImpImageProcessor(patch=corpus.patch), feature_extractor=extractor))


def prepared(corpus: Corpus, collate: Collator, samples: list[tuple[bytes, int]], in_turn: bool = False) -> Batch:
    """The work: a batch of encoded media and their labels; each sample decoded from beginning to end, as maps over samples do it,
    or all of them by one kind of work after another, as our loader does."""
    task, rng, nothing = corpus.task, _generator(), MediaCache(0)
    media = [Media(f"{n}.{corpus.extension}", data=data) for n, (data, _) in enumerate(samples)]
    labels, rngs, role = [label for _, label in samples], [rng] * len(samples), task.modalities[0]
    if in_turn:
        raws = [{role: one, "label": label} for one, label in zip(media, labels)]
        decoded = decode_all(raws, task.views, rngs, nothing, augment=task.augment, wanted=Wanted(label=True))
    else:
        decoded = [{role: _decoded(one, task, rng, nothing), "label": label} for one, label in zip(media, labels)]
    return collate(task.name, task.views, decoded, rngs, augment=task.augment)


def _decoded(media: Media, task: Task, rng: np.random.Generator, nothing: MediaCache):
    if task.views.audio is not None:
        samples_N, rate = open_recording(media).samples()
        start = int(rng.random() * (max(0, len(samples_N) - (wanted := round(task.views.audio.seconds * rate))) + 1))
        return samples_N[start : start + wanted], rate
    view, augment = task.views.vision, task.augment
    if media.suffix in VIDEOS:
        clip_THWC = read_video(media, view, rng, nothing)
    else:
        clip_THWC = read_image(media, pixels_needed(view, augment))[None]
    box = random_box(clip_THWC.shape[1:3], view.width / view.height, augment.crop_area, augment.crop_aspect, rng)
    return mirror(resize(box.cut(clip_THWC), (view.height, view.width)), rng)


_generators: dict[int, np.random.Generator] = {}


def _generator() -> np.random.Generator:
    """One for each process: other trainers do not give each sample its own."""
    return _generators.setdefault(os.getpid(), np.random.default_rng(os.getpid()))


class Raw:
    """No loader: as many bare processes do the work on samples that they read where they know them to lie, and forget it."""

    name, in_turn = "raw decoding", False

    def __init__(self, corpus: Corpus, workers: int, folder: Path):
        self.corpus, self.workers, self.places = corpus, workers, []
        for path in corpus.shards:
            with tarfile.open(path) as tar:
                members = {member.name: (member.offset_data, member.size) for member in tar}
                for name in (name for name in members if name.endswith(".cls")):
                    label = int(tar.extractfile(name).read())
                    self.places.append((path, *members[name.removesuffix("cls") + corpus.extension], label))

    def rate(self, seconds: float) -> float:
        context = multiprocessing.get_context("fork")
        together, results = context.Barrier(self.workers), context.SimpleQueue()
        processes = [
            context.Process(target=self._run, args=(number, seconds, together, results)) for number in range(self.workers)
        ]
        for process in processes:
            process.start()
        rates = [results.get() for _ in processes]
        for process in processes:
            process.join()
        return sum(rates)

    def _run(self, number: int, seconds: float, together, results) -> None:
        torch.set_num_threads(1)
        collate, size = collator(self.corpus), self.corpus.task.batch_size
        files = {path: os.open(path, os.O_RDONLY) for path in self.corpus.shards}
        rng, samples, start = np.random.default_rng(number), -2 * size, 0.0  # two batches are not counted
        while samples <= 0 or time.perf_counter() - start < seconds:
            if samples == 0:
                together.wait(60)
                start = time.perf_counter()
            found = []
            for place in rng.integers(len(self.places), size=size).tolist():
                path, offset, length, label = self.places[place]
                found.append((os.pread(files[path], length, offset), label))
            prepared(self.corpus, collate, found, self.in_turn)
            samples += size
        results.put(samples / (time.perf_counter() - start))


class RawInTurn(Raw):
    """The same, decoded as our loader decodes: what is left between the two is the loader's own."""

    name, in_turn = "raw, in turn", True


class _Loader:
    """A contestant whose batches are iterated: `start` gives the iterator."""

    in_turn = False

    def __init__(self, corpus: Corpus, workers: int, folder: Path):
        self.corpus, self.workers, self.folder = corpus, workers, folder

    def start(self):
        raise NotImplementedError

    def rate(self, seconds: float) -> float:
        iterator, size = self.start(), self.corpus.task.batch_size
        for _ in range(self.workers * (PREFETCH + 1)):
            next(iterator)
        batches, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            next(iterator)
            batches += 1
        return batches * size / (time.perf_counter() - start)


class Ours(_Loader):
    """RotatingLoader over a Source: exact order, a random stream for each sample, broken samples borne."""

    name = "imp_ds"

    def __init__(self, corpus: Corpus, workers: int, folder: Path):
        super().__init__(corpus, workers, folder)
        settings = SimpleNamespace(cache_dir=str(folder / "cache"), cache_gb=1.0, retries=0, window=65536)
        self.reader = open_reader(corpus.shards[0].parents[1], corpus.task.source, "train", settings)

    def start(self):
        task = self.corpus.task
        schedule = SimpleNamespace(at=lambda step: (task.name, step))
        own = {task.name: [self.reader]}
        batches = StepBatches([task], schedule, own, collator(self.corpus), seed=0, cache_mb=0)
        return RotatingLoader(batches, stop_step=_ENDLESS, workers=self.workers, prefetch=PREFETCH)


class Datasets(_Loader):
    """A map-style data set of Hugging Face, its bytes not decoded by it, under torch's DataLoader."""

    name = "datasets"

    def __init__(self, corpus: Corpus, workers: int, folder: Path):
        super().__init__(corpus, workers, folder)
        import datasets

        datasets.disable_progress_bars()
        files = [str(path) for path in corpus.shards]
        names = {"__key__": "string", "__url__": "string", corpus.extension: "binary", "cls": "int64"}
        features = datasets.Features({name: datasets.Value(kind) for name, kind in names.items()})  # media as they are
        settings = dict(data_files=files, split="train", features=features, cache_dir=str(folder / "datasets"))
        self.rows = datasets.load_dataset("webdataset", **settings).select_columns([corpus.extension, "cls"])

    def start(self):
        work = partial(prepared, self.corpus, collator(self.corpus), in_turn=self.in_turn)
        extension = self.corpus.extension
        return iter(
            DataLoader(
                self.rows, batch_size=self.corpus.task.batch_size, sampler=RandomSampler(self.rows, num_samples=1 << 24),
                num_workers=self.workers, prefetch_factor=PREFETCH, multiprocessing_context="fork",
                collate_fn=lambda rows: work([(row[extension], row["cls"]) for row in rows]),
            )
        )  # fmt: skip


class WebDataset(_Loader):
    """The library webdataset: shards read from end to end, shuffled in a buffer, batched in the workers."""

    name = "webdataset"

    def start(self):
        import webdataset

        work = partial(prepared, self.corpus, collator(self.corpus), in_turn=self.in_turn)
        extension = self.corpus.extension
        shards = [str(path) for path in self.corpus.shards]
        # without end: named again and again, since `repeat` would also repeat the incomplete batch at the end
        samples = webdataset.WebDataset(shards * (1 << 16), shardshuffle=len(shards), seed=0)
        samples = samples.shuffle(_SHUFFLED).map(lambda sample: (sample[extension], int(sample["cls"])))
        batches = samples.batched(self.corpus.task.batch_size, collation_fn=work)
        settings = dict(num_workers=self.workers, prefetch_factor=PREFETCH, multiprocessing_context="fork")
        return iter(webdataset.WebLoader(batches, batch_size=None, **settings))


CONTESTANTS = (Raw, RawInTurn, Ours, Datasets, WebDataset)
PEERS = (Datasets, WebDataset)
