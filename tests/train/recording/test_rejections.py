"""Samples that were left out: counted alike on all ranks, named once, and judged against what a source may lose."""

import json
import types

import numpy as np
import pytest
import torch.distributed as dist

from imp_ds.errors import UserError
from imp_ds.modalities.text.view import TextView
from imp_ds.modalities.views import Views
from imp_ds.modalities.vision.view import VisionView
from imp_ds.objectives import Contrastive
from imp_ds.tasks import Rejection, Source, Task
from imp_ds.train.recording import rejections
from imp_ds.train.recording.rejections import Rejections


def source(path: str, weight: float = 1.0) -> Source:
    return Source(path=path, vision="v", text="t", weight=weight)


def task(name: str, batch_size: int, *sources: Source) -> Task:
    return Task(
        name=name, source=sources[0], additional_sources=list(sources[1:]), batch_size=batch_size,
        views=Views(vision=VisionView(height=8, width=8), text=TextView()), objectives=[Contrastive(pairs=[("vision", "text")])],
    )  # fmt: skip


PHOTOS, WEB = source("photos", 3.0), source("web", 1.0)
TASKS = [task("mixed", 100, PHOTOS, WEB), task("web_only", 40, WEB)]
READERS = {
    "mixed": [types.SimpleNamespace(name="photos[train]"), types.SimpleNamespace(name="web[train]")],
    "web_only": [types.SimpleNamespace(name="web[train]")],
}


def make(folder, most=0.05, **settings) -> Rejections:
    return Rejections(folder, TASKS, READERS, most, **(dict(writes=True) | settings))


def bad(key, source="web[train]", reason="unreadable image", detail="truncated") -> Rejection:
    return Rejection(source, str(key), reason, detail)


def add(to: Rejections, step: int, task: str, mine: tuple[Rejection, ...], any_rank: bool) -> list[Rejection]:
    """A step of one task on all ranks."""
    return to.add(step, {task: 1.0}, task, mine, any_rank)


def lines(folder) -> list[dict]:
    path = folder / rejections.FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_each_sample_is_written_once(tmp_path):
    found = make(tmp_path, most=1.0)
    assert add(found, 1, "mixed", (bad(1), bad(2), bad(1)), True) == [bad(1), bad(2)]
    assert add(found, 2, "web_only", (bad(2), bad(1, "photos[train]", "empty", "")), True) == [
        bad(1, "photos[train]", "empty", "")
    ]
    assert add(found, 3, "web_only", (), False) == []
    assert [
        (line["step"], line["task"], line["source"], line["key"], line["reason"], line["detail"]) for line in lines(tmp_path)
    ] == [
        (1, "mixed", "web[train]", "1", "unreadable image", "truncated"),
        (1, "mixed", "web[train]", "2", "unreadable image", "truncated"),
        (2, "web_only", "photos[train]", "1", "empty", ""),
    ]
    assert found.counts == {"web[train]": {"unreadable image": 2}, "photos[train]": {"empty": 1}}


def test_a_step_counts_for_each_source_by_its_share_and_for_what_took_the_places(tmp_path):
    found = make(tmp_path, most=1.0)
    add(found, 1, "mixed", (bad(1), bad(2)), True)  # 100 samples, 3 : 1, and two more rows of the web were tried
    add(found, 2, "web_only", (), False)
    assert found.state() == {"drawn": {"photos[train]": 75.0, "web[train]": 25.0 + 2 + 40}, "left_out": {"web[train]": 2}}


def test_too_many_of_one_source_end_the_run_and_name_it(tmp_path):
    found = make(tmp_path, most=0.05)
    for step in range(1, 5):  # 160 samples: too few to be judged, however many of them are bad
        add(found, step, "web_only", (bad(step), bad(-step), bad(step + 100)), True)
    # 5 * 40 samples and 16 rows that were tried for others: 16 of 216 are more than 5 %
    with pytest.raises(UserError) as error:
        add(found, 5, "web_only", (bad(5), bad(6), bad(7), bad(8, reason="empty")), True)
    assert error.value.shared
    text = str(error.value)
    assert "too many samples of web[train] cannot be used" in text and "16 of 216" in text and "data.max_rejected = 0.05" in text
    assert "the last one 5: unreadable image (truncated)" in text and str(tmp_path / rejections.FILE) in text
    assert len(lines(tmp_path)) == 16  # all are named before it ends


def test_a_source_within_its_share_is_not_judged_by_another(tmp_path):
    found = make(tmp_path, most=0.05)
    for step in range(1, 11):  # 750 photos, 250 of the web: 2 % and 5 of 255
        add(found, step, "mixed", (bad(step, "photos[train]"), *([bad(step)] if step % 2 else [])), True)
    state = found.state()  # of the photos 10 of 760, of the web 5 of 255
    for number, over in ((10, False), (11, True)):  # 15 of 305 are within 5 %, 16 of 306 are not
        again = make(tmp_path, most=0.05, start_step=10, state=json.loads(json.dumps(state)))
        rejected = tuple(bad(key) for key in range(100, 100 + number))
        if over:
            with pytest.raises(UserError, match=r"samples of web\[train\].*\n.*16 of 306"):
                add(again, 11, "web_only", rejected, True)
        else:
            assert len(add(again, 11, "web_only", rejected, True)) == 10


def ranks(monkeypatch, *others, task="web_only"):
    """This process is rank 0 of a world in which the others left out these, of `task`."""

    def gather(into, mine):
        into[:] = [mine, *((task, left_out) for left_out in others)]

    monkeypatch.setattr(rejections, "world_size", lambda: 1 + len(others))
    monkeypatch.setattr(dist, "all_gather_object", gather)


def test_all_ranks_know_of_what_one_left_out(tmp_path, monkeypatch):
    ranks(monkeypatch, (bad(1), bad(2)), ())
    found = make(tmp_path, most=1.0, writes=False)
    assert add(found, 1, "web_only", (), True) == []
    assert found.state()["left_out"] == {"web[train]": 2} and lines(tmp_path) == []
    writer = make(tmp_path, most=1.0)
    assert add(writer, 1, "web_only", (bad(1),), True) == [bad(1), bad(2)]
    assert writer.state()["left_out"] == {"web[train]": 3}


def test_ranks_with_different_tasks_count_and_name_their_own(tmp_path, monkeypatch):
    ranks(monkeypatch, (bad(1),), (), (bad(2, "photos[train]"),), task="mixed")
    found = make(tmp_path, most=1.0)
    # of 4 ranks one trains web_only, 10 samples, and three train mixed, 75 samples of which a quarter is of the web
    new = found.add(1, {"mixed": 0.75, "web_only": 0.25}, "web_only", (bad(3),), True)
    assert new == [bad(3), bad(1), bad(2, "photos[train]")]
    assert [(line["task"], line["key"]) for line in lines(tmp_path)] == [("web_only", "3"), ("mixed", "1"), ("mixed", "2")]
    assert found.state()["drawn"] == {"photos[train]": 0.75 * 75 + 1, "web[train]": 0.75 * 25 + 0.25 * 40 + 2}


def test_every_rank_stops_at_the_same_step(tmp_path, monkeypatch):
    positions = [(), (bad(1), bad(2)), (bad(3),), tuple(bad(number) for number in range(10, 30))]
    for rank in range(4):
        ranks(monkeypatch, *positions[:rank], *positions[rank + 1 :])
        found = make(tmp_path, most=0.2, writes=False)
        for step in range(1, 4):  # 3 * 40 samples and 23 rows each time
            add(found, step, "web_only", positions[rank], True)
        with pytest.raises(UserError, match="92 of 252"):
            add(found, 4, "web_only", positions[rank], True)


def test_nothing_is_exchanged_where_no_rank_left_anything_out(tmp_path, monkeypatch):
    ranks(monkeypatch, ())
    exchanges, found = [], make(tmp_path)
    monkeypatch.setattr(dist, "all_gather_object", lambda *given: exchanges.append(given))
    assert add(found, 1, "web_only", (), False) == [] and exchanges == []
    assert found.state() == {"drawn": {"web[train]": 40}, "left_out": {}} and lines(tmp_path) == []


def test_a_resumed_run_goes_on_counting_and_forgets_what_it_will_do_again(tmp_path):
    first = make(tmp_path, most=1.0)
    add(first, 1, "web_only", (bad(1),), True)
    state = json.loads(json.dumps(first.state()))  # as a checkpoint keeps it
    add(first, 2, "web_only", (bad(2), bad(3, reason="empty")), True)
    add(first, 3, "web_only", (bad(4),), True)
    again = make(tmp_path, most=1.0, start_step=1, state=state)
    assert [line["key"] for line in lines(tmp_path)] == ["1"] and again.counts == {"web[train]": {"unreadable image": 1}}
    assert add(again, 2, "web_only", (bad(2), bad(1), bad(3, reason="empty")), True) == [bad(2), bad(3, reason="empty")]
    assert [line["key"] for line in lines(tmp_path)] == ["1", "2", "3"]
    assert again.state() == {"drawn": {"web[train]": 40 + 1 + 40 + 3}, "left_out": {"web[train]": 4}}


def test_what_is_remembered_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(rejections, "_REMEMBERED", 10)
    found = make(tmp_path, most=1.0)
    for step in range(1, 6):
        add(found, step, "web_only", tuple(bad(key) for key in np.arange(step * 10, step * 10 + 10)), True)
    assert len(found._known) == 10 and len(lines(tmp_path)) == 50
