"""Recipes of several stages: what they may say, what --set changes in them, and where models of earlier stages stand."""

import json
from pathlib import Path

import pytest

from imp_ds import train
from imp_ds.cli.recipe_runs import each_run, one_run, other_run
from imp_ds.commands.recipes import copied, shown
from imp_ds.errors import UserError
from imp_ds.recipes import get_recipe
from imp_ds.stages import Stage, StagedRun, references

RECIPE = """
from imp_ds import DataSettings, MessagesView, NextToken, RunConfig, Source, Stage, StagedRun, Task, TrainSettings
from imp_ds import UniMoeSettings, Views

LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
CLIP = {"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 8, "patch_size": 4}

def _run(name, model, **train):
    task = Task(name="chat", source=Source(path=".", messages="messages"), views=Views(messages=MessagesView(length=64)),
                objectives=[NextToken()], batch_size=4)
    data = DataSettings(vocab_size=120)
    return RunConfig(name=name, model=model, data=data, tasks=[task], train=TrainSettings(steps=2, **train))

def mine() -> StagedRun:
    language = _run("mine_language", UniMoeSettings(language_model=LLAMA))
    image = _run("mine_image", UniMoeSettings(language_model="stage:language", image_tower=CLIP))
    all_ = _run("mine_all", UniMoeSettings(language_model="stage:language", image_tower=CLIP), init_from="stage:image")
    all_.data.tokenizer = "stage:language"
    return StagedRun(name="mine", stages=[Stage(name="language", run=language), Stage(name="image", run=image),
                                          Stage(name="all", run=all_)])
"""


@pytest.fixture
def staged(tmp_path, monkeypatch) -> StagedRun:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(RECIPE)
    return get_recipe("mine.py")


def test_a_recipe_is_the_same_as_function_yaml_json_and_copy(staged, tmp_path):
    Path("short.yaml").write_text(shown(staged))
    Path("long.json").write_text(json.dumps(staged.model_dump(mode="json")))
    copied(staged, "mine.py", tmp_path / "copy.py")
    for recipe in ("mine.py:mine", "short.yaml", "long.json", "copy.py"):
        assert get_recipe(recipe) == staged, recipe
    assert isinstance(staged, StagedRun) and [stage.name for stage in staged.stages] == ["language", "image", "all"]


def test_a_stage_names_the_models_of_earlier_ones(staged):
    assert references(staged.stage("all").run) == [
        ("model.language_model", "language"), ("data.tokenizer", "language"), ("train.init_from", "image"),
    ]  # fmt: skip
    assert [staged.needed(name) for name in ("language", "image", "all")] == [[], ["language"], ["language", "image"]]
    run = staged.run_of("all", Path("runs/x"))
    assert (run.model.language_model, run.data.tokenizer) == ("runs/x/language/model",) * 2
    assert run.train.init_from == "runs/x/image/model" and staged.stage("all").run.train.init_from == "stage:image"


def test_what_only_looks_at_a_stage_does_without_the_models_before_it(staged):
    run = staged.planned("all", Path("runs/x"))
    assert run.model.language_model == staged.stages[0].run.model.language_model
    assert (run.data.tokenizer, run.train.init_from) == (None, None)
    Path("runs/x/language/model").mkdir(parents=True)
    assert staged.planned("all", Path("runs/x")).model.language_model == "runs/x/language/model"


@pytest.mark.parametrize(
    "stage, reference, allowed",
    [
        ("image", "stage:all", "stage:language"),
        ("image", "stage:image", "stage:language"),
        ("image", "stage:langage", "stage:language"),
        ("language", "stage:image", "none: this is the first stage"),
    ],
)
def test_a_later_or_unknown_stage_is_refused(staged, stage, reference, allowed):
    with pytest.raises(UserError) as error:
        staged.override([f"{stage}.model.language_model={reference}"])
    for part in (f"stage {stage}: model.language_model names no earlier stage", f"got:     {reference}", f"allowed: {allowed}"):
        assert part in str(error.value), str(error.value)


@pytest.mark.parametrize(
    "old, new, parts",
    [
        ('Stage(name="image"', 'Stage(name="language"', ["mine.py, line 20: two stages have one name", "got:     language"]),
        ('Stage(name="image"', 'Stage(name="im.age"', ["mine.py, line 20", "name", "'im.age'"]),
        ('"stage:language", image_tower=CLIP), init', '"stage:", image_tower=CLIP), init', ["all: model.language_model"]),
        ("stages=[", "stages=[] and [", ["stages", "at least 1"]),
    ],
)  # fmt: skip
def test_a_mistake_in_a_recipe_is_named(old, new, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert old in RECIPE
    Path("mine.py").write_text(RECIPE.replace(old, new))
    with pytest.raises(UserError) as error:
        get_recipe("mine.py")
    assert [part for part in parts if part not in str(error.value)] == [], str(error.value)


def test_a_mistake_in_yaml_has_its_line(staged):
    text = shown(staged).replace("steps: 2", "steps: many", 1)
    Path("mine.yaml").write_text(text)
    line = text[: text.index("many")].count("\n") + 1
    with pytest.raises(UserError, match=f"mine.yaml, line {line}: stages.0.run.train.steps"):
        get_recipe("mine.yaml")


def test_set_changes_one_stage_or_all(staged):
    changed = staged.override(["image.train.steps=7", "*.data.root=a=b.c", "all.tasks.chat.batch_size=2"])
    assert [stage.run.train.steps for stage in changed.stages] == [2, 7, 2]
    assert {stage.run.data.root for stage in changed.stages} == {"a=b.c"} and changed.stages[2].run.tasks[0].batch_size == 2
    assert staged.stages[1].run.train.steps == 2


@pytest.mark.parametrize(
    "override, parts",
    [
        ("train.steps=7", ["names no stage", "language, image, all, *", "--set language.train.steps=100"]),
        ("imag.train.steps=7", ["names no stage", "did you mean image?"]),
        ("image=7", ["names no stage"]),
        ("image.train.stepz=7", ["stage image: unknown key in --set: train.stepz", "steps"]),
    ],
)
def test_a_mistake_in_set_is_named(staged, override, parts):
    with pytest.raises(UserError) as error:
        staged.override([override])
    assert [part for part in parts if part not in str(error.value)] == [], str(error.value)


def test_commands_say_that_a_stage_is_to_be_named(staged):
    with pytest.raises(UserError, match=r"mine.py is a recipe of several stages(.|\n)*--stage NAME of language, image, all"):
        one_run("mine.py", None)
    with pytest.raises(UserError, match="the recipe has no stages"):
        one_run("digits_debug", "image")
    with pytest.raises(UserError, match="--stage is of a recipe"):
        other_run(None, "image")
    assert one_run("mine.py", "image", ["image.train.steps=9"]).train.steps == 9
    assert list(each_run("mine.py", None, [])) == ["language", "image", "all"] and list(each_run("digits", None, [])) == [None]
    assert other_run("mine.py", "image").name == "mine_image" and other_run(None, None) is None


def test_a_program_that_trains_stages_by_a_call_is_told_how(staged):
    with pytest.raises(UserError, match=r"trained by the command(.|\n)*staged.run_of\(\"language\", FOLDER\)"):
        train(staged, "runs/mine")


def test_an_unknown_stage_is_suggested(staged):
    with pytest.raises(UserError, match="did you mean image"):
        staged.stage("imag")
    assert isinstance(staged.stages[0], Stage)
