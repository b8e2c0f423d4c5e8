"""What the frozen towers of a run make of the media of its conversations, computed before the first step.

The ranks of a node share the work, each node for itself. A rank that has nothing left takes part with blank media, so that all
ranks call a tower equally often, as ZeRO 3 wants it.

Shapes: N media, L tokens, S width of the tower.
"""

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from imp_ds.data.files.file_cache import FileCache
from imp_ds.data.files.storage import cache_folder
from imp_ds.data.media_features import FeatureCache
from imp_ds.data.reader import Reader
from imp_ds.errors import UserError
from imp_ds.families.uni_moe.train_module import UniMoeForTraining
from imp_ds.modalities.media import BadSample, Media
from imp_ds.modalities.media_cache import MediaCache
from imp_ds.modalities.messages.decoding import decode_medium
from imp_ds.modalities.messages.spellings import media_of
from imp_ds.modalities.messages.view import MessagesView
from imp_ds.models.uni_moe.processing_uni_moe import UniMoeProcessor
from imp_ds.models.uni_moe.towers import INPUTS
from imp_ds.parallel.groups import any_rank, rank, world_size

_STAGE = "features of media, conversations"
_REPORTED = 64  # rows from one report to the next
_TOGETHER = 16  # media that go through a tower at a time
_ROOM = 15 / 16  # of the bound: what the cache leaves of its files when it makes room


class _Seen(NamedTuple):
    """A source, as a task sees it."""

    reader: Reader
    view: MessagesView


class _Missing(NamedTuple):
    """A medium whose features are to be computed, and the name that they get."""

    key: str
    kind: str
    media: Media
    view: MessagesView


def cached_features(
    run, model: UniMoeForTraining, processor: UniMoeProcessor, readers: dict[str, list[Reader]], hashes: dict[str, str],
    report: Callable,
) -> FeatureCache | None:  # fmt: skip
    """The cache with all features of the run's media in it, so far as towers are frozen; None where the run wants none.

    All ranks call it. Arguments as those of `ModelFamily.media_features`. Raises UserError, on every rank, where no tower is
    frozen, and where the features do not fit.
    """
    gigabytes = run.data.messages.feature_cache_gb
    if not gigabytes:
        return None
    every = {kind: _of_tower(kind, model, processor, hashes, run) for kind in model.config.towers}
    towers = {kind: found for kind, found in every.items() if found is not None}
    if not towers:
        fix = "freeze them: train.trainable names what is trained; or data.messages.feature_cache_gb=0"
        raise UserError("every tower is trained: there are no features to keep", got=f"feature_cache_gb = {gigabytes:g}", fix=fix)
    files = FileCache(cache_folder(run.data.cache_dir) / "features", int(gigabytes * 2**30), "data.messages.feature_cache_gb")
    cache = FeatureCache(files, towers)
    views = [(task.name, view.messages) for task in run.tasks for view in task.all_views if view.messages is not None]
    sources = [_Seen(reader, view) for name, view in views for reader in readers[name]]
    training = model.training
    model.eval()
    known = _fill(cache, sources, model, processor, run, report)
    for kind in towers:
        model.given_features[kind] = tuple(_computed(kind, [], model, processor)[0].shape[1:])
    if (total := _of_node(sum(known.values()))) > _ROOM * files.most_bytes:
        raise UserError(
            "the features of all media do not fit into their cache", got=f"{total / 2**30:.3g} GiB",
            allowed=f"15/16 of data.messages.feature_cache_gb = {gigabytes:g}", fix="raise it, or set it to 0: no cache",
        )  # fmt: skip
    kept = [key for key, size in known.items() if size]
    files.pin(kept)
    if any_rank(not all(map(files.has, kept))):  # another run made room for its own before they were pinned
        _fill(cache, sources, model, processor, run, report)
    model.train(training)
    return cache


def _of_tower(kind: str, model: UniMoeForTraining, processor: UniMoeProcessor, hashes: dict[str, str], run) -> dict | None:
    """What the features of a kind of media follow from; None where its tower is trained."""
    tower, config = model.uni_moe.tower(kind), model.config
    prefix = f"uni_moe.{config.towers[kind]}_tower."
    names = [name for name, _ in model.named_parameters() if name.startswith(prefix)]
    if any(name not in hashes for name in names):
        return None
    return {
        "weights": {name: hashes[name] for name in names}, "type": str(next(tower.parameters()).dtype),
        "config": config.tower_config(config.towers[kind]).to_dict(), "layer": config.feature_layer,
        "processor": processor.preprocessing(kind), "ground": run.data.decoding.alpha_ground,
    }  # fmt: skip


def _fill(
    cache: FeatureCache, sources: list[_Seen], model: UniMoeForTraining, processor: UniMoeProcessor, run, report: Callable
) -> dict[str, int]:
    """Compute what is missing of the media in this rank's share of the rows; returns key -> bytes of all of it, or of so much
    that it cannot fit."""
    total, known, held = sum(len(seen.reader) for seen in sources), {}, 0
    missing = _missing(cache, sources, known, lambda done: report(_STAGE, done, total))
    decode = lambda item: _decoded(item, run.data.decoding)  # noqa: E731
    with ThreadPoolExecutor(max(1, run.data.workers)) as pool:
        while any_rank(bool(some := list(islice(missing, _TOGETHER * len(cache.kinds))))):
            decoded = [(item, value) for item, value in zip(some, pool.map(decode, some)) if value is not None]
            for kind in cache.kinds:  # in one order on all ranks
                left = [(item.key, value) for item, value in decoded if item.kind == kind]
                while any_rank(bool(left)):
                    now, left = left[:_TOGETHER], left[_TOGETHER:]
                    for (key, _), features_NLS in zip(now, _computed(kind, [value for _, value in now], model, processor)):
                        cache.write(key, features_NLS)
                        known[key] = features_NLS.nbytes
                        held += known[key]
            if any_rank(held > cache.files.most_bytes):
                break
    report(_STAGE, total, total)
    return known


def _missing(cache: FeatureCache, sources: list[_Seen], known: dict[str, int], done: Callable) -> Iterator[_Missing]:
    """Media of this rank's rows whose features are not kept; `known` takes the bytes of those that are."""
    before, (share, shares), seen = 0, _share_of_node(), set()
    for reader, view in sources:
        for row in range(share, len(reader), shares):
            if row // shares % _REPORTED == 0:
                done(before + row)
            for kind, media in _media(reader, row):
                name = kind, media.name, view.frames, view.sampling_rate  # files come in many rows: each is hashed once
                if kind not in cache.kinds or name in seen:
                    continue
                seen.add(name)
                try:
                    key = cache.key(kind, media, view)
                except BadSample:
                    continue
                if key not in known:
                    features_NLS = cache.find(key)
                    known[key] = 0 if features_NLS is None else features_NLS.nbytes
                    if features_NLS is None:
                        yield _Missing(key, kind, media, view)
        before += len(reader)


def _media(reader: Reader, row: int) -> list[tuple[str, Media]]:
    try:
        return media_of(reader.read(row)["messages"])
    except BadSample:
        return []


def _decoded(item: _Missing, decoding) -> np.ndarray | None:
    """None for what cannot be: the loader leaves it out too."""
    try:
        return decode_medium(item.kind, item.media, item.view, MediaCache(0), decoding)
    except BadSample:
        return None


@torch.no_grad()
def _computed(kind: str, media: list[np.ndarray], model: UniMoeForTraining, processor: UniMoeProcessor) -> list[torch.Tensor]:
    """The features [N, L, S] of each medium, on the CPU; with none at all those of a blank one."""
    device = next(model.parameters()).device
    inputs, counts = processor.media_inputs(kind, media) if media else (None, [1])
    values = model.blank(kind, device) if inputs is None else [
        torch.from_numpy(inputs[name]).to(device) for name in INPUTS[kind] if name in inputs
    ]  # fmt: skip
    return list(model.uni_moe.encode_media(kind, *values).cpu().split(counts))


def _share_of_node() -> tuple[int, int]:
    """Number of this rank among those of its node, and how many they are."""
    hosts = [socket.gethostname()] * world_size()
    if world_size() > 1:
        dist.all_gather_object(hosts, socket.gethostname())
    own = [number for number, host in enumerate(hosts) if host == socket.gethostname()]
    return own.index(rank()), len(own)


def _of_node(value: int) -> int:
    """The sum over the ranks of a node, where every node has the same work."""
    found = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(found, value)
    return round(sum(found) * _share_of_node()[1] / world_size())
