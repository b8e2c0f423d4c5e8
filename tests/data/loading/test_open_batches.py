"""Which samples the ranks take: of every batch a share, or of the tasks that they drew themselves."""


import pytest

from helpers.small_run import make_run
from imp_ds.parallel import groups
from imp_ds.randomness import sample_keys
from imp_ds.train import start

ROWS, STEPS = 24, 40


def open_ranks(monkeypatch, world: int, ep_size: int, schedule: str) -> list:
    """The batches of every rank, of a run whose image tasks have batches of 8 and whose speech task has one of 4."""
    run, found = make_run(ep_size=ep_size), []
    run.train.schedule = schedule
    readers = {task.name: [Rows()] for task in run.tasks}
    for rank in range(world):
        monkeypatch.setattr(start, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(start, "world_size", lambda: world)
        found.append(start.open_batches(run, readers, None))
    return found


class Rows:
    """A source of which nothing but its size is asked."""

    name, shard_rows, damage = "rows", [ROWS], ["a.tar: cut off after 3 samples"]

    def __len__(self):
        return ROWS


@pytest.mark.parametrize("ep_size, groups", [(1, 4), (2, 2)])
def test_ranks_that_draw_take_every_sample_of_an_epoch_once(monkeypatch, ep_size, groups):
    ranks = open_ranks(monkeypatch, 4, ep_size, "sampling_per_rank")
    taken, mixed = {name: [] for name in ranks[0].tasks}, False
    for step in range(STEPS):
        names = [batches.schedule.at(step).name for batches in ranks]
        # ranks that share experts train one task
        assert all(len(set(names[first : first + ep_size])) == 1 for first in range(0, 4, ep_size))
        mixed |= len(set(names)) > 1
        for name, batches in zip(names, ranks):
            sample_indices = batches.sample_indices(step)
            assert len(sample_indices) == {"image_text": 8, "speech_text": 4, "image_class": 8}[name] // 4
            taken[name] += sample_indices
    assert mixed
    for name, sample_indices in taken.items():
        assert len(sample_indices) > ROWS, "more than an epoch of each task"
        for epoch in range(len(sample_indices) // ROWS):
            part = sample_indices[epoch * ROWS : (epoch + 1) * ROWS]
            assert {index.epoch for index in part} == {epoch} and sorted(index.row for index in part) == list(range(ROWS))


def test_ranks_that_draw_have_random_keys_of_their_own(monkeypatch):
    """Two samples of one step never share one, whatever tasks the ranks have; without draws they are numbered through."""
    drawing = open_ranks(monkeypatch, 4, 1, "sampling_per_rank")
    assert [batches.first_key for batches in drawing] == [0, 2, 4, 6]  # the largest share of a batch is 8 / 4
    spread = open_ranks(monkeypatch, 4, 2, "sampling_per_rank")
    assert [(b.first_key, b.rank, b.world) for b in spread] == [(0, 0, 2), (0, 1, 2), (4, 0, 2), (4, 1, 2)]
    shared = open_ranks(monkeypatch, 4, 1, "rotation")
    assert [(b.first_key, b.rank, b.world) for b in shared] == [(0, rank, 4) for rank in range(4)]
    keys = [key for b in drawing for key in sample_keys(0, 5, b.first_key, 2).tolist()]
    assert len(set(keys)) == 8


def test_inside_alone_a_process_is_a_world_of_its_own(monkeypatch):
    monkeypatch.setattr(groups.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(groups.dist, "get_rank", lambda: 3)
    monkeypatch.setattr(groups.dist, "get_world_size", lambda: 4)
    with groups.alone():
        assert (groups.rank(), groups.world_size()) == (0, 1)
        groups.barrier()
    assert (groups.rank(), groups.world_size()) == (3, 4)
    with pytest.raises(KeyError), groups.alone():
        raise KeyError
    assert groups.world_size() == 4


def test_a_run_that_goes_on_with_other_groups_says_so(monkeypatch, capsys):
    run = make_run()
    state = {"world_size": 4, "ep_size": 2, "step": 70}
    monkeypatch.setattr(start, "world_size", lambda: 2)
    start.tell_of_groups(run, state)
    run.train.schedule = "sampling_per_rank"
    start.tell_of_groups(run, state)  # two groups of two, two of one: the same draws
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(start, "world_size", lambda: 3)
    start.tell_of_groups(run, state)
    assert "until step 70 2 groups of ranks drew a task each, from here on 3" in capsys.readouterr().err


def test_a_damaged_file_is_reported_once(monkeypatch, capfd):
    run, rows = make_run(), Rows()
    monkeypatch.setattr(start, "open_corpus", lambda run, split, progress: {task.name: [rows] for task in run.tasks})
    start.open_readers(run)
    assert capfd.readouterr().err == "rows: a.tar: cut off after 3 samples\n"
