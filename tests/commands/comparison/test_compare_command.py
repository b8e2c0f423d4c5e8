"""`compare-routers` from end to end on two small routers, with the real training; and going on where it was stopped."""

import json

import pytest
from PIL import Image

from helpers.ranks import Ranks, run_ranks
from helpers.ranks import command as run_command
from imp_ds.commands.comparison import command, processes
from imp_ds.commands.comparison.jobs import plan_jobs
from imp_ds.errors import UserError

SMALL = ["model.hidden_size=32", "model.intermediate_size=48", "model.num_hidden_layers=2", "model.common_dim=16"]


def compare(out, data, **changes):
    given = dict(routers=["dense", "attribute"], seeds=1, steps=5, parallel=2, samples=2, rounds=1, settings=SMALL)
    command.compare_routers(out, **given | dict(data=data) | changes)


def options(values: list[str], name: str) -> list[str]:
    return [word for value in values for word in (name, value)]


@pytest.mark.distributed
def test_a_comparison_trains_times_and_tells_and_is_not_done_twice(tmp_path, digits_corpus, monkeypatch):
    """The runs are made by forks, which is quick; `compare-routers`, which would start a process for each, finds them done."""
    out = tmp_path / "out"
    routers = ["dense", "attribute"]
    jobs = plan_jobs(out, routers, 1, data=digits_corpus, steps=5, samples=2, settings=SMALL)
    while all_words := {job.name: words for job in jobs if (words := job.command()) is not None}:
        begun = [Ranks(run_command, *all_words[name][3:], ranks=1, folder=tmp_path / name) for name in all_words]
        for ended in [one.wait(60) for one in begun]:
            assert ended.codes == [0], str(ended)
    words = ["compare-routers", out, "--data", digits_corpus, "--seeds", 1, "--steps", 5, "--samples", 2, "--rounds", 1]
    words += options(routers, "--router") + options(SMALL, "--set")
    said = run_ranks(run_command, *words, ranks=1, folder=tmp_path / "logs").outputs[0]
    assert "2 of 2 runs are done already" in said and "wrote " in said
    table = json.loads((out / "table.json").read_text())
    dense, attribute = table["routers"]["dense"][0], table["routers"]["attribute"][0]
    page = (out / "README.md").read_text()
    assert "| dense |" in page and "| attribute |" in page and "5 steps" in page and "one seed" in page
    assert Image.open(out / "comparison.png").width > 1000
    # layer 1 has 8 experts, or a copy for each condition: image, speech, their names, a text with hidden words, the words that
    # their candidates are, an image, its caption, and its words; four linear layers have 32 * (96 + 32) + 2 * 32 * 48
    # numbers
    more = 32 * (96 + 32) + 2 * 32 * 48
    assert attribute["parameters/served"] == dense["parameters/trained"] + 8 * more
    assert attribute["parameters/trained"] > dense["parameters/trained"] + 7 * more  # and routers
    assert 0 < attribute["parameters/active"] - dense["parameters/active"] < more
    assert dense["parameters/active"] == dense["parameters/trained"] == dense["parameters/served"]
    assert table["details"]["layers_with_experts"] == [1]
    assert table["details"]["timing"]["0"]["attribute"]["merged_difference"] <= 1e-5
    for values in (dense, attribute):
        assert values["train/steps"] == 5 and values["time/step"] > values["time/encode"] > 0
        assert {"interference/with_experts", "interference/shared"} <= values.keys()
        assert 0 <= values["retrieval/speech_to_image/R@1"] <= values["retrieval/speech_to_image/R@10"] <= 1
    # again: nothing is started and nothing timed, and the same is reported
    monkeypatch.setattr(processes.subprocess, "Popen", None)
    monkeypatch.setattr(command, "time_routers", None)
    compare(out, digits_corpus)
    assert json.loads((out / "table.json").read_text())["routers"] == table["routers"]
    with pytest.raises(UserError, match="another comparison"):
        compare(out, digits_corpus, steps=6)


def test_without_a_corpus_nothing_is_begun(tmp_path):
    with pytest.raises(UserError, match=r"no digits corpus(.|\n)*imp_ds corpus digits"):
        compare(tmp_path / "out", tmp_path / "nothing")
    assert not (tmp_path / "out").exists()
