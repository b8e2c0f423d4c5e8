"""A tenth of a corpus broken in twelve kinds and more: every step is fed, what is left out is told, nothing else changes."""

import tracemalloc

import pytest
import torch

from helpers.broken_corpus import BROKEN_MEDIA, BROKEN_SHARD, loader, write_media, write_shards


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("broken")
    write_shards(root / "shards")
    write_media(root / "media" / "train")
    return root


def planted() -> set[tuple[str, str]]:
    """(number of the sample, reason)"""
    shards = {(f"s{i:03d}", reason) for i, (_, reason) in BROKEN_SHARD.items()}
    return shards | {(f"m{i}", reason) for i, reason in BROKEN_MEDIA.items()}


def named(rejection) -> tuple[str, str]:
    if rejection.source.startswith("shards"):
        return f"s{rejection.key.rpartition('/')[2]}", rejection.reason
    number = "39" if rejection.reason == "bad JSON" else rejection.key.partition(".")[0]
    return f"m{number}", rejection.reason


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_broken_is_reported_exactly_and_the_run_goes_on(root, workers):
    # 80 pictures are ten batches of 8 and 40 recordings five: 20 steps in turn are an epoch of the one and two of the other
    found = list(loader(root, 20, workers))
    assert [batch.task for batch in found] == ["pictures", "sounds"] * 10
    rejected = {named(rejection) for batch in found for rejection in batch.report.rejected}
    assert rejected == planted() and len(rejected) == 18  # of 120 samples
    used = {key for batch in found for key in batch.report.keys}
    left_out = {rejection.key for batch in found for rejection in batch.report.rejected}
    assert not used & left_out and len(used) == 120 - 18


def test_nobody_else_notices(root):
    """Every sample that is used is what it is alone, and every index whose own sample is sound has that one."""
    batches = loader(root, 20).batches
    for step in range(20):
        batch, task = batches[step], batches.tasks[batches.schedule.at(step).name]
        (reader,) = batches.readers[task.name]
        bad = {rejection.key for rejection in batch.report.rejected}
        for position, index in enumerate(batches.sample_indices(step)):
            own = reader.key(index.row)
            assert (batch.report.keys[position] == own) == (own not in bad)
            if own not in bad:
                ((sample, rng, _),) = batches.usable(task, task.views).at([index])
                alone = batches.collator(task.name, task.views, [sample], [rng])
                for modality, inputs in alone.inputs.items():
                    for name, tensor in inputs.items():
                        assert torch.equal(tensor[0], batch.inputs[modality][name][position])


@pytest.mark.parametrize("world", [2, 4])
def test_what_takes_a_place_does_not_depend_on_the_ranks(root, world):
    full = [batch.report.keys for batch in loader(root, 20)]
    ranks = [[batch.report.keys for batch in loader(root, 20, rank=rank, world=world)] for rank in range(world)]
    assert [sum(parts, ()) for parts in zip(*ranks)] == full


def test_memory_stays_flat(root):
    batches = loader(root, 200).batches
    for step in range(20):
        batches[step]
    tracemalloc.start()
    for step in range(20, 40):
        batches[step]
    before = tracemalloc.get_traced_memory()[0]
    for step in range(40, 160):
        batches[step]
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 2**19
