"""Samples of like length in one batch: the same samples, in an order that follows from (seed, step) alone."""

import numpy as np
import pytest

from imp_ds.data.order.order import GroupedOrder, SampleIndex, SourceOrder, TaskOrder
from imp_ds.modalities.views import Views
from imp_ds.objectives import Classification
from imp_ds.tasks import Source, Task

ROWS, BATCH, BATCHES = 40, 4, 5
LENGTHS = np.random.default_rng(0).permutation(ROWS)  # each once


def plain(seed=0):
    return TaskOrder([SourceOrder([10] * 4, [seed], 16)], [1.0], [seed])


def grouped(seed=0):
    return GroupedOrder(plain(seed), [LENGTHS], BATCH, BATCHES, [seed])


def test_every_run_has_the_samples_that_it_had():
    for run in range(4):
        positions = range(run * BATCH * BATCHES, (run + 1) * BATCH * BATCHES)
        assert sorted(grouped().at(positions)) == sorted(plain().at(positions))
    assert sorted(index.row for index in grouped().at(range(ROWS))) == list(range(ROWS))  # an epoch


def test_samples_of_a_batch_are_alike_and_batches_are_not_in_their_order():
    first = [LENGTHS[index.row] for index in plain().at(range(BATCH * BATCHES))]
    batches = [[LENGTHS[i.row] for i in grouped().at(range(k * BATCH, (k + 1) * BATCH))] for k in range(BATCHES)]
    # of 20 sorted lengths the first four make a batch, the next four the next
    assert sorted(map(sorted, batches)) == np.sort(first).reshape(BATCHES, BATCH).tolist()
    assert batches != sorted(batches) and any(batch != sorted(batch) for batch in batches)


def test_any_stretch_is_the_same_whoever_asks():
    every = grouped().at(range(200))
    assert all(grouped().at(range(start, start + 7)) == every[start : start + 7] for start in range(0, 190, 13))
    assert grouped(1).at(range(200)) != every and isinstance(every[0], SampleIndex)


def test_a_task_of_equally_long_samples_is_refused():
    source, views = Source(path="a", vision="b", label="c"), Views(vision={"height": 16, "width": 16})
    fields = dict(name="a", source=source, views=views, objectives=[Classification(modality="vision")], batch_size=4)
    assert Task(**fields).measured is None
    with pytest.raises(ValueError, match="equally long"):
        Task(**fields, group_by_length=5)
