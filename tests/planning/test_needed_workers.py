"""How many workers a plan needs, against sums done by hand."""

import pytest

from imp_ds.planning.needed_workers import Need, needed_workers, needs
from imp_ds.planning.plan import plan
from imp_ds.recipes import get_recipe

# videos: 8 samples every 0.5 s at 4 a second: 2 s of a worker for each step; words: 80 samples every 0.1 s at 1600 a second
VIDEOS = Need("films", 0.25, 8, 0.5, 4.0)
WORDS = Need("words", 0.75, 80, 0.1, 1600.0)


def test_what_a_task_wants():
    assert (VIDEOS.wanted, VIDEOS.worker_seconds) == (16.0, 2.0)
    assert (WORDS.wanted, WORDS.worker_seconds) == (pytest.approx(800.0), 0.05)


def test_workers_follow_the_mean_over_the_schedule():
    assert needed_workers([VIDEOS]) == 4  # 2 s of work in 0.5 s
    assert needed_workers([WORDS]) == 1  # 0.05 s in 0.1 s
    # 0.25 * 2 + 0.75 * 0.05 = 0.5375 s of work in 0.25 * 0.5 + 0.75 * 0.1 = 0.2 s: 2.69 workers
    assert needed_workers([VIDEOS, WORDS]) == 3


@pytest.mark.parametrize("unknown", [Need("x", 0.5, 8, None, 4.0), Need("x", 0.5, 8, 0.5, None)])
def test_what_is_not_known_is_not_guessed(unknown):
    assert needed_workers([VIDEOS, unknown]) is None


def test_needs_of_a_plan():
    run = get_recipe("imp_b")
    made = plan(run, 2, 4)
    rows = sum(len(task.all_views) for task in run.tasks)
    found = needs(made, [100.0] * rows)
    assert [need.name for need in found] == [task.name for task in made.tasks]
    assert [need.samples for need in found] == [task.batch_size / 8 for task in made.tasks]
    assert [need.wanted for need in found] == [task.batch_size / 8 / time.seconds for task, time in zip(made.tasks, made.times)]
    without = needs(plan(run, 1, 1, "float32"), [None] * rows)  # no hardware profile is known: no times
    assert needed_workers(without) is None and without[0].wanted is None
