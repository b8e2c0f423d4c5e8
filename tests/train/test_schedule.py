"""The schedule against a literal re-statement of the released loop, and against hand counts."""

from types import SimpleNamespace

import numpy as np
import pytest

from imp_ds.errors import UserError
from imp_ds.train.schedule import Rotation, Sampling, build_schedule


def released_loop(intervals, total_steps):
    """The released trainer, word for word: fixed order, each round counts, multiples of the interval train."""
    counters = {name: 0 for name in intervals}
    occurrences, trained = [], {name: 0 for name in intervals}
    global_step = 0
    while global_step < total_steps:
        for name, interval in intervals.items():
            counters[name] += 1
            if counters[name] % interval == 0:
                occurrences.append((name, trained[name]))
                trained[name] += 1
                global_step += 1
                if global_step == total_steps:
                    break
    return occurrences


def test_rotation_by_hand():
    # Sweeps: 1 -> a; 2 -> a, b; 3 -> a, c; 4 -> a, b; 5 -> a; 6 -> a, b, c.
    schedule = Rotation({"a": 1, "b": 2, "c": 3})
    assert [schedule.at(step).name for step in range(11)] == list("a" "ab" "ac" "ab" "a" "abc")
    assert [tuple(schedule.at(step)) for step in (0, 2, 4, 9, 10)] == [("a", 0), ("b", 0), ("c", 0), ("b", 2), ("c", 1)]


@pytest.mark.parametrize("intervals", [[1], [7], [2, 3], [3, 2], [4, 6, 10], [5, 5, 5], [1, 1, 12, 5, 12, 8]])
def test_rotation_equals_the_released_loop(intervals):
    named = {f"t{i}": interval for i, interval in enumerate(intervals)}
    schedule = Rotation(named)
    assert [tuple(schedule.at(step)) for step in range(3000)] == released_loop(named, 3000)


def test_rotation_equals_the_released_loop_for_random_intervals():
    rng = np.random.default_rng(0)
    for _ in range(10):
        named = {f"t{i}": int(k) for i, k in enumerate(rng.integers(1, 40, size=rng.integers(1, 8)))}
        schedule = Rotation(named)
        assert [tuple(schedule.at(step)) for step in range(2000)] == released_loop(named, 2000), named


def test_rotation_far_away_and_with_long_periods():
    # 10**12 sweeps of two tasks at 1 and 10**9: 10**12 + 10**3 steps; the last of them is the slow task's 1000th occurrence.
    schedule = Rotation({"fast": 1, "slow": 10**9})
    assert tuple(schedule.at(10**12 + 10**3 - 1)) == ("slow", 999)
    assert tuple(schedule.at(10**12 + 10**3)) == ("fast", 10**12)


def test_shares_of_the_released_recipe():
    # 1 + 1 + 1/12 + 1/5 + 1/12 + 1/8 = 2.491667 steps in a sweep; 1 / 2.491667 = 40.13%, 0.2 / 2.491667 = 8.03%.
    tasks = dict(image_text=1, image=1, video_text=12, video=5, video_audio_text=12, audio=8)
    schedule = Rotation(tasks)
    assert schedule.shares()["image_text"] == pytest.approx(0.4013, abs=5e-5)
    assert schedule.shares()["video"] == pytest.approx(0.0803, abs=5e-5)
    assert sum(schedule.shares().values()) == pytest.approx(1)
    counted = sum(schedule.at(step).name == "video" for step in range(20_000)) / 20_000
    assert counted == pytest.approx(schedule.shares()["video"], abs=1e-3)


def test_sampling_is_a_pure_function_of_the_step():
    weights = {"a": 1.0, "b": 3.0}
    forward, backward = Sampling(weights, seed=5), Sampling(weights, seed=5)
    late = [backward.at(step) for step in reversed(range(9000))][::-1]
    assert [forward.at(step) for step in range(9000)] == late
    other = Sampling(weights, seed=6)
    assert [other.at(step) for step in range(9000)] != late


def test_sampling_visits_count_the_turns_across_blocks():
    schedule = Sampling({"a": 1.0, "b": 2.0, "c": 0.5}, seed=1)
    trained = {"a": 0, "b": 0, "c": 0}
    for step in range(3 * Sampling._BLOCK + 17):
        name, occurrence = schedule.at(step)
        assert occurrence == trained[name]
        trained[name] += 1


def test_sampling_follows_the_weights():
    # 40,000 draws at probability 0.25: standard deviation sqrt(0.25 * 0.75 / 40000) = 0.0022; five of them are 0.011.
    schedule = Sampling({"never": 0.0, "a": 1.0, "b": 3.0, "nor_this": 0.0}, seed=3)
    names = [schedule.at(step).name for step in range(40_000)]
    assert names.count("a") / 40_000 == pytest.approx(0.25, abs=0.011)
    assert names.count("never") == names.count("nor_this") == 0
    assert schedule.shares() == {"never": 0.0, "a": 0.25, "b": 0.75, "nor_this": 0.0}


def test_the_draws_of_a_step_are_those_of_philox():
    """Two tasks, 1 : 3: a draw below a quarter is the first one's."""
    draws = np.random.Generator(np.random.Philox(key=[7, 1])).random((4096, 3))
    for group in range(3):
        schedule = Sampling({"a": 1.0, "b": 3.0}, 7, 3, group)
        assert [schedule.at(4096 + position).name for position in range(50)] == ["ab"[int(d >= 0.25)] for d in draws[:50, group]]
    # one group draws what a schedule without groups drew in earlier versions
    draws = np.random.Generator(np.random.Philox(key=[7, 0])).random(4096)
    alone = Sampling({"a": 1.0, "b": 3.0}, 7)
    assert [alone.at(step).name for step in range(100)] == ["ab"[int(draw >= 0.25)] for draw in draws[:100]]


def test_groups_take_the_batches_of_a_task_one_after_another():
    """Step after step, and in a step group after group, without a gap, also from one block of draws to the next."""
    groups = [Sampling({"a": 1.0, "b": 2.0, "c": 0.5}, 1, 3, group) for group in range(3)]
    taken = {"a": 0, "b": 0, "c": 0}
    for step in range(Sampling._BLOCK + 100):
        occurrences = [schedule.at(step) for schedule in groups]
        for name, occurrence in occurrences:
            assert occurrence == taken[name]
            taken[name] += 1
        names = [occurrence.name for occurrence in occurrences]
        shares = {name: names.count(name) / 3 for name in "abc" if name in names}
        assert all(schedule.mixture(step) == shares for schedule in groups)
        assert list(groups[0].mixture(step)) == list(shares)
    again = Sampling({"a": 1.0, "b": 2.0, "c": 0.5}, 1, 3, 2)  # a resumed run
    assert again.at(Sampling._BLOCK + 99) == occurrences[2]
    assert again.at(17) == groups[2].at(17)


def test_groups_follow_the_weights_and_draw_by_themselves():
    # 4 x 10,000 draws at 0.25: a standard deviation is sqrt(0.25 * 0.75 / 40000) = 0.00217; of a pair of groups, which agree with
    # probability 0.25^2 + 0.75^2 = 0.625, it is sqrt(0.625 * 0.375 / 10000) = 0.00484
    groups = [Sampling({"a": 1.0, "b": 3.0}, 11, 4, group) for group in range(4)]
    names = [[schedule.at(step).name for step in range(10_000)] for schedule in groups]
    share = sum(of_group.count("a") for of_group in names) / 40_000
    assert share == pytest.approx(0.25, abs=3 * 0.00217)
    for first, second in [(0, 1), (2, 3), (0, 3)]:
        agree = sum(a == b for a, b in zip(names[first], names[second])) / 10_000
        assert agree == pytest.approx(0.625, abs=3 * 0.00484)


def test_a_schedule_without_groups_has_one_task_a_step():
    rotation, sampling = Rotation({"a": 1, "b": 2}), Sampling({"a": 1.0, "b": 1.0}, 0)
    for step in range(20):
        assert rotation.mixture(step) == {rotation.at(step).name: 1.0}
        assert sampling.mixture(step) == {sampling.at(step).name: 1.0}


def test_build_schedule_and_its_refusals():
    tasks = [SimpleNamespace(name="a", interval=2, weight=1.0), SimpleNamespace(name="b", interval=3, weight=0.0)]
    assert build_schedule("rotation", tasks, 0).intervals == {"a": 2, "b": 3}
    assert build_schedule("sampling", tasks, 0).weights == {"a": 1.0, "b": 0.0}
    found = build_schedule("sampling_per_rank", tasks, 0, groups=4, group=3)
    assert (found.groups, found.group) == (4, 3)
    assert build_schedule("sampling", tasks, 0, groups=4, group=3).groups == 1
    with pytest.raises(UserError, match="unknown schedule"):
        build_schedule("random", tasks, 0)
    with pytest.raises(UserError, match="one name"):
        build_schedule("rotation", [tasks[0], tasks[0]], 0)
    with pytest.raises(UserError, match="interval"):
        Rotation({"a": 0})
    for weights in ({"a": 0.0}, {"a": -1.0, "b": 2.0}, {"a": float("nan")}, {}):
        with pytest.raises(UserError, match="weights"):
            Sampling(weights, 0)
