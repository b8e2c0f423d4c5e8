"""`doctor RECIPE` and `plan` of a recipe of several stages: what is missing, in a line each, and what can be planned is."""

import json

import pytest
from typer.testing import CliRunner

from helpers.talking import make_run, write_rows
from imp_ds.cli import app
from imp_ds.commands.doctor.recipe import examine_run, examine_stages, made_by, missing_models
from imp_ds.recipes import get_recipe
from imp_ds.stages import Stage, StagedRun, model_folder

TOWER = "model.image_tower=runs/digits/model"


@pytest.fixture
def run(tmp_path):
    write_rows(tmp_path, ["seven"] * 8)
    return make_run(tmp_path)


@pytest.fixture
def staged(run, tmp_path) -> StagedRun:
    """The second stage wants a tower that is not there."""
    return StagedRun(name="two", stages=[Stage(name="first", run=run), Stage(name="second", run=run.override([TOWER]))])


def test_a_recipe_that_has_all_is_well(run):
    data, models = examine_run(run)
    assert (data.name, data.state, models.name, models.state) == ("data", "ok", "models", "ok")
    assert "2 sources, 9 rows of train, 9 rows of validation" in data.found and models.found == "uni_moe, from fresh weights"


def test_each_thing_that_is_missing_has_a_line(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no model has been made
    lacking = run.override([TOWER, "data.root=nowhere", "data.tokenizer=./none"])
    checks = {check.name: check for check in examine_run(lacking, "a")}
    assert [check.state for check in checks.values()] == ["broken"] * 3
    assert "nowhere" in checks["a: data"].found and "./none: no such folder" in checks["a: tokenizer"].found
    lines = checks["a: models"].found.splitlines()
    made = "imp_ds train digits, then imp_ds export runs/digits runs/digits/model"
    assert lines == [f"model.image_tower: runs/digits/model is not there: {made}"]
    assert made_by("runs/talk/image/model") == "imp_ds train talk" and made_by("models/vicuna") is None
    # the models of stages are made when the recipe is trained
    experts = {"base": str(tmp_path / "runs" / "image" / "model"), "odd": "odd"}
    run = run.model_copy(update={"model": run.model.model_copy(update={"experts": experts})})
    assert missing_models(run, tmp_path / "runs") == {"model.experts.odd": "odd is not there"}


def test_stages_that_are_left_are_named(staged, tmp_path):
    (model_folder(tmp_path, "first")).mkdir(parents=True)
    (model_folder(tmp_path, "first") / "config.json").write_text("{}")
    check = examine_stages(staged, tmp_path, "two.json")
    assert (check.state, check.found) == ("lacks", f"in {tmp_path}: first; left: second")
    assert check.advice == "imp_ds train two.json --resume auto"


def test_the_commands_go_through_all_stages(staged, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.json").write_text(json.dumps(staged.model_dump(mode="json")))
    found = CliRunner().invoke(app, ["doctor", "two.json"])
    assert found.exit_code == 1 and found.output.count(": models ") == 2 and "broken  second: models" in found.output
    assert "left: first, second" in found.output
    planned = CliRunner().invoke(app, ["plan", "two.json"])
    assert planned.exit_code == 1 and planned.output.count("Memory of a rank") == 1
    assert "not planned: model.image_tower is not there" in planned.output
    assert "imp_ds train digits, then imp_ds export runs/digits" in " ".join(planned.output.split())
    one = CliRunner().invoke(app, ["plan", "two.json", "--stage", "second"])
    assert "model.image_tower is not there" in str(one.exception)
    alone = CliRunner().invoke(app, ["doctor", "--stage", "second"])
    assert "no recipe" in str(alone.exception)


def test_talk_is_planned_as_far_as_it_can_be(tmp_path, monkeypatch):
    """Its towers are made by the quickstart."""
    monkeypatch.chdir(tmp_path)
    run = get_recipe("talk").planned("align", model_folder("no", "stages"))
    assert set(missing_models(run)) == {f"model.{kind}_tower" for kind in ("image", "video", "audio")}
