"""`data check`: every number that it finds in a corpus of which everything is known, and what it says and refuses."""

import io
import json
import os
import sys
import time
from collections import Counter
from types import SimpleNamespace

import pytest
from rich.console import Console

from helpers.made_corpus import make_run, write_images, write_recordings, write_rows, write_videos
from imp_ds import cli
from imp_ds.commands.check import command as check_command
from imp_ds.commands.check.command import examine, processor_of
from imp_ds.commands.check.request import CheckRequest
from imp_ds.commands.check.table import show
from imp_ds.data.corpus import open_corpus
from imp_ds.data.inspect import check as looking
from imp_ds.data.loading.collation import Collator
from imp_ds.data.loading.worker_speed import worker_speed
from imp_ds.data.order import usable_samples
from imp_ds.errors import UserError
from imp_ds.planning.needed_workers import needed_workers
from imp_ds.planning.plan import plan

ALL = ("image_text", "image_class", "film_class", "film_sound", "sound_class")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    write_images(root)
    write_videos(root)
    write_recordings(root)
    return root


@pytest.fixture
def quick(monkeypatch):
    """The speed of a worker is not measured, but given: 10 samples a second in the first view of a task, 20 in the second."""
    reported = lambda task, readers, collator, view, **settings: 10.0 * (view + 1)  # noqa: E731
    monkeypatch.setattr(check_command, "worker_speed", reported)


def report(run, samples=None, processes=0, trained=None):
    return examine(CheckRequest(run, plan(run, 1, 2), "train", samples, processes, trained), lambda *reported: None)


@pytest.fixture
def found(root, quick):
    """source -> its part of the record."""
    return {entry["source"]: entry for entry in report(make_run(root, *ALL)).record()["sources"]}


def test_pictures(found):
    images = found["images[train]"]
    assert images["tasks"] == ["image_text", "image_class"]
    assert (images["samples"], images["looked_at"]) == (6, 6)
    assert images["kinds"] == {"vision": {".png": 4, ".jpg": 1}}  # nothing is known of the one that is not there
    width = {"least": 16, "median": 32, "95 %": 64, "largest": 64, "mean": (32 + 64 + 32 + 40 + 16) / 5, "count": 5}
    assert images["numbers"]["width"] == width
    assert images["numbers"]["height"]["mean"] == (24 + 48 + 24 + 30 + 16) / 5
    assert images["classes"] == {"dog": 2, "cat": 2, "number": 1}


def test_copies_of_files_and_captions(found, root):
    images = found["images[train]"]
    assert images["media"] == {"different": 4, "copies": 1, "estimated": False, "same": [("a.png", "c.png")]}
    assert (images["captions"]["different"], images["captions"]["copies"]) == (5, 1)
    sizes = [(root / "images" / "train" / name).stat().st_size for name in ("a.png", "b.png", "c.png", "d.png", "f.jpg")]
    number = images["numbers"]["bytes"]
    assert (number["least"], number["largest"], number["mean"]) == (min(sizes), max(sizes), sum(sizes) / 5)


def test_captions(found):
    images = found["images[train]"]
    assert images["scripts"] == {"latin": 3, "cyrillic": 1, "cjk": 1, "none": 1}  # not of the sample that cannot be used
    numbers = images["numbers"]
    assert numbers["captions"] == {"least": 1, "median": 1, "95 %": 2, "largest": 2, "mean": 6 / 5, "count": 5}
    assert (numbers["words"]["mean"], numbers["words"]["largest"]) == ((3 + 2 + 1 + 2 + 1 + 1) / 6, 3)


def test_tokens_are_those_of_the_tokenizer(root, quick):
    run = make_run(root, *ALL)
    counted = report(run).record()["sources"][0]["numbers"]["tokens"]
    tokenizer = processor_of(run, open_corpus(run), None).tokenizer
    lengths = [len(tokenizer.tokenize(text)) for text in ("a red dog", "a cat", "собака", "a cat", "犬の写真", "123")]
    assert (counted["count"], counted["mean"], counted["largest"]) == (6, sum(lengths) / 6, max(lengths))


def test_videos(found):
    films = found["films[train]"]
    assert films["kinds"] == {"vision": {".mp4": 4}, "audio": {".mp4": 4}}
    numbers = films["numbers"]
    assert (numbers["frames"]["least"], numbers["frames"]["largest"], numbers["frames"]["count"]) == (5, 10, 3)
    assert numbers["video seconds"]["largest"] == pytest.approx(0.4) and numbers["frames a second"]["mean"] == 25
    # two have a recording, of 0.2 s to a frame of AAC, 1,024 samples
    assert numbers["audio seconds"]["count"] == 2 and numbers["audio seconds"]["mean"] == pytest.approx(0.2, abs=0.064)
    assert films["media"]["different"] == 4


def test_recordings(found):
    waveforms = found["sounds[train]"]
    assert waveforms["numbers"]["audio seconds"]["mean"] == pytest.approx(0.32)
    assert waveforms["numbers"]["samples a second"]["least"] == 16000 and waveforms["numbers"]["channels"]["largest"] == 1
    assert waveforms["left_out"] == {"sound_class": {}} and waveforms["examples"] == []


def test_each_task_leaves_out_what_it_cannot_use(found):
    broken = {"unreadable image": 1, "missing file": 1}
    # one has the label 2, and image_class distinguishes two classes
    assert found["images[train]"]["left_out"] == {"image_text": broken, "image_class": broken | {"no such class": 1}}
    named = [(example["key"], example["reason"]) for example in found["images[train]"]["examples"]]
    assert named == [("d.png", "unreadable image"), ("e.png", "missing file"), ("f.jpg", "no such class")]
    # a video without audio is of use to the task that does not hear
    expected = {"film_class": {"unreadable video": 1}, "film_sound": {"no audio": 1, "unreadable video": 1}}
    assert found["films[train]"]["left_out"] == expected


def test_the_share_that_is_broken_is_that_of_the_task_that_can_use_the_least(root, quick):
    # 3 of 6 pictures under image_class, 2 of 4 videos under film_sound
    of_all = report(make_run(root, *ALL, max_rejected=0.4))
    assert [source.share_left_out for source in of_all.sources] == [3 / 6, 2 / 4, 0]
    assert [source.name for source in of_all.broken()] == ["images[train]", "films[train]"]
    of_two = report(make_run(root, "image_text", "film_class", max_rejected=0.34))
    assert of_two.broken() == []  # 2 of 6, and 1 of 4: it is shown by what the tasks of the run can use


def test_a_label_without_a_class_is_warned_of(root, quick):
    [warning] = report(make_run(root, *ALL)).warnings()
    assert "images[train] has a class 2, but task image_class has 2 classes" in warning


def test_what_two_sources_or_splits_have_in_common_is_named(root, quick, tmp_path):
    write_images(tmp_path)
    write_images(tmp_path / "other")
    folder = tmp_path / "images" / "validation"
    folder.mkdir()
    for name, content in (("v.png", "b.png"), ("w.png", None)):
        content = b"no picture" if content is None else (tmp_path / "images" / "train" / content).read_bytes()
        (folder / name).write_bytes(content)
    rows = [dict(file_name=name, label=0, captions="a cat") for name in ("v.png", "w.png")]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = make_run(tmp_path, "image_text", "image_class")
    one, two = run.tasks
    other = two.source.model_copy(update={"path": "other/images"})
    run = run.model_copy(update={"tasks": [one, two.model_copy(update={"source": other})]})
    found = report(run)
    # a, b, d and f are in both sources, c is a again; b alone is in the validation split, once for each source
    reported = [(entry["first"], entry["second"], entry["what"], entry["count"]) for entry in found.record()["in_common"]]
    assert reported == [
        ("images[train]", "other/images[train]", "media files", 4),
        ("images[train]", "images[validation]", "media files", 1),
        ("other/images[train]", "images[validation]", "media files", 1),
    ]
    assert found.overlaps[1].same == [("b.png", "v.png")]
    assert "warning: images[train] and images[validation] have 1 media files in common: b.png and v.png" in printed(found)


def test_captions_that_a_view_cuts_and_padding_of_audio(root, quick):
    run = make_run(root, "image_text", "sound_class", "film_sound")
    found = report(run)
    images, films, waveforms = found.record()["sources"]
    tokenizer = processor_of(run, open_corpus(run), None).tokenizer
    lengths = [len(tokenizer.tokenize(text)) for text in ("a red dog", "a cat", "собака", "a cat", "犬の写真", "123")]
    assert images["views"] == [{"task": "image_text", "tokens": 8, "cut": sum(length > 8 for length in lengths) / 6}]
    assert waveforms["views"] == [{"task": "sound_class", "modality": "audio", "seconds": 0.32, "padding": 0}]  # tones of 0.32 s
    # about 0.2 s, to a frame of AAC, in a view of 0.32 s
    [waveforms] = films["views"]
    assert waveforms["padding"] == pytest.approx(1 - 0.2 / 0.32, abs=0.064 / 0.32)
    assert "sound_class: a view of 0.32 s of audio is 0.0% padding" in printed(found)


def test_some_samples_are_spread_over_a_source(root, quick):
    found = report(make_run(root, "image_text"), samples=3)
    [images] = found.record()["sources"]
    assert (images["samples"], images["looked_at"]) == (6, 3)
    assert images["left_out"] == {"image_text": {}} and images["media"]["same"] == [("a.png", "c.png")]  # rows 0, 2 and 5
    assert not found.own_tokens and report(make_run(root, "image_text"), samples=6).own_tokens


def test_processes_find_what_one_finds(root, monkeypatch):
    monkeypatch.setattr(looking, "_LEAST", 2)  # three parts
    run = make_run(root, "image_text", "image_class")
    [reader] = open_corpus(run)["image_text"]
    one, two = (looking.look(reader, run.tasks, None, processes) for processes in (0, 2))
    for facts in (one, two):
        assert facts.rows == 6 and facts.media.copies == 1 and facts.left_out["image_text"].total() == 2
    assert one.examples == two.examples and one.scripts == two.scripts and one.labels == two.labels
    assert {name: s.summary() for name, s in one.spreads.items()} == {name: s.summary() for name, s in two.spreads.items()}


def test_a_process_that_dies_is_an_error_that_says_where(root, monkeypatch):
    monkeypatch.setattr(looking, "decode", lambda *given, **settings: os._exit(1))
    run = make_run(root, "image_text")
    with pytest.raises(UserError, match=r"images\[train\]: a process died while it looked at samples\n  got: +a.png or one of"):
        looking.look(open_corpus(run)["image_text"][0], run.tasks, None, 1)


# --- speed, and the workers that a plan needs


def test_each_view_of_a_task_is_timed_for_its_own_need(root, quick):
    run = make_run(root, *ALL)
    found = report(run)
    speeds = [(need.name.split()[0], need.speed) for need in found.needs]
    names = ["image_text", "image_class", "image_class", "film_class", "film_sound", "sound_class"]
    assert [name.startswith(wanted) for (name, _), wanted in zip(speeds, names, strict=True)] == [True] * 6
    assert [speed for _, speed in speeds] == [10, 10, 20, 10, 10, 10]
    # of two ranks each has half of a batch; samples / speed seconds of a worker, against the step's own
    working = sum(need.share_of_steps * need.samples / need.speed for need in found.needs)
    computing = sum(need.share_of_steps * need.step_seconds for need in found.needs)
    assert found.workers == needed_workers(found.needs) and working / computing <= found.workers < working / computing + 1
    assert found.record()["plan"]["workers_of_a_rank"] == found.workers


def test_a_worker_is_timed_by_what_it_does(root, monkeypatch):
    run = make_run(root, "image_text", "sound_class")
    readers, decode, task = open_corpus(run), usable_samples.decode_all, run.task("sound_class")
    collator = Collator(processor_of(run, readers, None))

    def slow(raws, *given, **settings):
        time.sleep(0.02 * len(raws))
        return decode(raws, *given, **settings)

    monkeypatch.setattr(usable_samples, "decode_all", slow)
    speed = worker_speed(task, readers["sound_class"], collator, 0, seed=0, window=16, seconds=0.3)
    assert 10 < speed < 50  # 20 ms each, and something for the rest
    monkeypatch.undo()
    assert worker_speed(task, readers["sound_class"], collator, 0, seed=0, window=16, seconds=0.1) > 50


def test_a_task_without_a_usable_sample_has_no_speed(tmp_path):
    folder = write_rows(tmp_path, "films", dict(file_name="0.mp4", label=0))
    (folder / "0.mp4").write_bytes(b"no video at all")
    run = make_run(tmp_path, "film_class")
    no_tokens, readers = SimpleNamespace(has_tokens=None, conversation_tokens=None, features=None), open_corpus(run)["film_class"]
    assert worker_speed(run.tasks[0], readers, no_tokens, 0, seed=0, window=16, seconds=0.1) is None


# --- what is printed, written and refused


def printed(found) -> str:
    out = io.StringIO()
    show(found, Console(file=out, width=200))
    return out.getvalue()


def test_the_report_is_printed(root, quick):
    text = printed(report(make_run(root, *ALL)))
    for said in (
        "images[train]: 6 samples, all looked at",
        "vision: .png 4, .jpg 1",
        "media files: 4 different, 1 copies",
        "captions: 5 different, 1 copies; scripts: latin 50.0%, cyrillic 16.7%, cjk 16.7%, none 16.7%",
        "classes: 3 of 3: dog 2, cat 2, number 1",
        "image_text leaves out 2 of 6 (33.3%): unreadable image 1, missing file 1",
        "c.png: the same bytes as a.png",
        "sound_class leaves out none",
        "warning: images[train] has a class 2",
        "too many samples of films[train] cannot be used: 50.0% of the 4 that were looked at",
    ):
        assert said in text, said
    rows = [Counter(line.replace("│", " ").split()) for line in text.splitlines()]
    assert any(row["width"] and row["36.8"] for row in rows)


@pytest.fixture
def command(monkeypatch, capsys):
    """Run `data ARGUMENTS` on a run of our own: (exit code, stdout, stderr)."""

    def run(settings, *arguments) -> tuple[int, str, str]:
        monkeypatch.setattr("imp_ds.recipes.get_recipe", lambda name: settings)
        monkeypatch.setattr(sys, "argv", ["imp_ds", "data", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return (end.value.code or 0, *capsys.readouterr())

    return run


def test_the_exit_code_says_whether_a_run_would_bear_it(root, quick, command, tmp_path):
    out = tmp_path / "found.json"
    borne = make_run(root, "image_text", "sound_class", max_rejected=0.34)
    code, text, _ = command(borne, "check", "made", "--processes", 0, "--output", out)
    assert code == 0 and "sounds[train]: 3 samples, all looked at" in text
    record = json.loads(out.read_text())
    assert record["recipe"] == "made" and record["too_many_left_out"] == []
    code, text, _ = command(make_run(root, "image_text", max_rejected=0.33), "check", "made", "--processes", 0)
    assert code == 1 and "too many samples of images[train] cannot be used: 33.3% of the 6" in text


def test_a_plan_that_is_refused_ends_no_check(root, quick, command, tmp_path):
    """A dense model has no expert groups of two ranks; of the tasks only the times are not known."""
    out, run = tmp_path / "found.json", make_run(root, *ALL, max_rejected=0.6)
    planned = report(run)
    run = run.model_copy(update={"train": run.train.model_copy(update={"ep_size": 2})})
    code, text, _ = command(run, "check", "made", "--processes", 0, "--output", out)
    assert code == 0 and "images[train]: 6 samples, all looked at" in text and "the last warning" in text
    warning = " ".join(text.partition("warning: no plan of 1 node(s) x 1 rank(s)")[2].split())
    assert "expert parallelism without experts" in warning and "got: train.ep_size = 2" in warning
    record = json.loads(out.read_text())
    assert record["plan"]["workers_of_a_rank"] is None and record["warnings"][-1].startswith("no plan of 1 node(s) x 1")
    reported = [(task["task"], task["share_of_steps"], task["samples_per_s_of_a_worker"]) for task in record["tasks"]]
    assert reported == [(need.name, need.share_of_steps, need.speed) for need in planned.needs]


@pytest.mark.parametrize(
    "arguments, reported",
    [
        (["--split", "test"], "images/test does not exist"),
        (["--run", "no_such_run"], "the run has no processor"),
        (["--set", "data.root=no_such_folder"], "no_such_folder"),
        (["--samples", "0"], "--samples"),
    ],
)
def test_bad_input_is_one_message(root, quick, command, arguments, reported):
    code, _, error = command(make_run(root, "image_text"), "check", "made", "--processes", "0", *arguments)
    assert code == 2 and reported in error and "Traceback" not in error
