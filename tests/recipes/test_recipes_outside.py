"""Recipes from outside the package: Python files, modules, JSON and YAML, and one message for each mistake in them."""

import json
from pathlib import Path

import pytest

from imp_ds.errors import UserError
from imp_ds.recipes import get_recipe

GOOD = """
from imp_ds import RunConfig, get_recipe

def steps():
    return 7

def mine() -> RunConfig:
    run = get_recipe("digits_debug")
    run.name, run.train.steps = "mine", steps()
    return run
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))  # what a test appends is undone with it
    return tmp_path


def write(name: str, text: str) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)
    return name


@pytest.mark.parametrize("recipe", ["my.py", "my.py:mine", "./my.py", "package_of_test.my:mine"])
def test_a_recipe_of_ones_own_is_taken_from_a_file_or_a_module(recipe):
    write("my.py", GOOD), write("package_of_test/my.py", GOOD)
    run = get_recipe(recipe)
    assert (run.name, run.train.steps, run.tasks) == ("mine", 7, get_recipe("digits_debug").tasks)


def test_a_file_finds_what_lies_beside_it_from_any_folder(folder):
    write("deep/beside_of_test.py", "STEPS = 5\n")
    write("deep/my.py", GOOD.replace("return 7", "from beside_of_test import STEPS; return STEPS"))
    assert get_recipe("deep/my.py").train.steps == get_recipe(f"{folder}/deep/my.py").train.steps == 5


def test_a_changed_file_is_read_anew():
    assert get_recipe(write("my.py", GOOD)).train.steps == 7
    assert get_recipe(write("my.py", GOOD.replace("7", "8"))).train.steps == 8


HEAD = "from imp_ds import RunConfig, Source, TrainSettings, get_recipe\n"


@pytest.mark.parametrize(
    "text, parts",
    [
        ("", ["my.py holds no recipe", "no function", "-> RunConfig"]),
        (HEAD + "def a(): pass\ndef b(): pass\n", ["several functions", "a (line 2), b (line 3)", "my.py:a"]),
        (HEAD + "def a(): return 5\n", ["my.py, line 2", "does not return a RunConfig", "int"]),
        (HEAD + "def a(x) -> RunConfig: return x\n", ["line 2", "without arguments", "x", "default"]),
        (HEAD + "def a():\n    return\n  1\n", ["my.py, line 4", "not Python"]),
        ("from imp_ds import RunConfigg\n", ["my.py, line 1", "ImportError", "did you mean RunConfig?", "import RunConfigg"]),
        ("import imp_ds\nRUN = imp_ds.Taks\n", ["my.py, line 2", "AttributeError", "did you mean Task?"]),
        ("RUN = RunConfig()\n", ["my.py, line 1", "NameError", "fix:     from imp_ds import RunConfig"]),
        ("import impds\n", ["my.py, line 1", "ModuleNotFoundError", "did you mean imp_ds?"]),
        ("import absent_of_test\n", ["my.py, line 1", "install absent_of_test, or put it beside the recipe"]),
        ("from json import qwxz\n", ["my.py, line 1", "there are dump, dumps"]),
        (HEAD + "def a():\n    return 1 / 0\n", ["my.py, line 3", "recipe failed", "ZeroDivisionError", "return 1 / 0"]),
        (HEAD + "import no_such_module\n", ["my.py, line 2", "No module named 'no_such_module'"]),
        (HEAD + "raise SystemExit(3)\n", ["my.py, line 2", "SystemExit: 3"]),
        (HEAD + "def a():\n    return Source(path='x', visoin='y')\n", ["my.py, line 3", "visoin", "did you mean vision"]),
        (HEAD + "def a():\n    return TrainSettings(steps=0)\n", ["my.py, line 3: steps", "greater than or equal to 1"]),
        (HEAD + "def a():\n    r = get_recipe('digits')\n    r.tasks.append(r.tasks[0])\n    return r\n",
         ["my.py, line 2", "two tasks have one name"]),
        (HEAD + "def a():\n    return get_recipe('digitz')\n", ["my.py, line 3: unknown recipe", "did you mean digits?"]),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file_is_reported_with_its_line(text, parts):
    write("my.py", text)
    with pytest.raises(UserError) as error:
        get_recipe("my.py")
    assert [part for part in parts if part not in str(error.value)] == [], str(error.value)


@pytest.mark.parametrize(
    "recipe, parts",
    [
        ("none.py", ["cannot be read", "none.py", "relative paths are meant from"]),
        ("my.py:mien", ["no function of that name", "did you mean mine?"]),
        ("no_such_package.x:mine", ["module of the recipe is not found", "no_such_package"]),
        ("my", ["unknown recipe", "my.py"]),
        ("none.yaml", ["cannot be read", "none.yaml"]),
    ],
)
def test_what_names_no_recipe_says_what_would(recipe, parts):
    write("my.py", GOOD)
    with pytest.raises(UserError) as error:
        get_recipe(recipe)
    assert [part for part in parts if part not in str(error.value)] == [], str(error.value)


YAML = """name: mine
data: {root: pictures}
tasks:
- name: birds
  source: {path: birds, vision: file_name, label: label}
  views:
    vision: {height: 32, width: 32}
  objectives:
  - kind: classification
    modality: vision
    num_classes: 3
  batch_size: 4
train:
  steps: 3
optimizer:
  peak_rate: 1e-4
"""


def test_yaml_and_json_are_the_same_run(folder):
    run = get_recipe(write("my.yaml", YAML))
    assert (run.optimizer.peak_rate, run.tasks[0].objectives[0].num_classes) == (1e-4, 3)
    run.save("run_config.json")
    assert get_recipe("run_config.json") == get_recipe(f"{folder}/run_config.json") == run


@pytest.mark.parametrize(
    "old, new, parts",
    [
        ("    num_classes: 3", "    num_clases: 3", ["my.yaml, line 11", "num_clases", "did you mean num_classes?"]),
        ("  steps: 3", "  steps: many", ["my.yaml, line 14", "train.steps", "'many'"]),
        ("  batch_size: 4\n", "", ["my.yaml, line 4", "batch_size", "nothing"]),
        ("train:", "train: [", ["my.yaml, line 1", "not YAML"]),
        ("name: mine", "name: mine\nname: yours", ["my.yaml, line 2", "stands twice", "line 1"]),
        ("name: mine", "name: !!python/object/apply:os.system ['touch ran']", ["my.yaml, line 1", "python/object"]),
        ("name: mine", "name: &a [*a]", ["my.yaml, line 1", "holds itself"]),
        (YAML, "- 1\n", ["holds no run", "a list"]),
        (YAML, "", ["holds no run", "nothing"]),
        (YAML, "x" * 10 + "\x00", ["not YAML"]),
        (YAML, "[" * 5000, ["not YAML"]),
    ],
)  # fmt: skip
def test_a_mistake_in_yaml_is_reported_with_its_line(old, new, parts):
    with pytest.raises(UserError) as error:
        get_recipe(write("my.yaml", YAML.replace(old, new)))
    assert [part for part in parts if part not in str(error.value)] == [], str(error.value)
    assert not Path("ran").exists()


def test_a_few_lines_of_aliases_do_not_become_billions_of_values():
    levels = "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]\n" for i in range(1, 12))
    with pytest.raises(UserError, match="too large for a run"):
        get_recipe(write("my.yaml", f"x0: &x0 [1]\n{levels}"))


def test_a_mistake_in_json_is_reported_with_its_line():
    get_recipe("digits_debug").save("my.json")
    text = json.dumps(json.loads(Path("my.json").read_text()) | {"extra": 1}, indent=2)
    with pytest.raises(UserError, match=f"my.json, line {text.count(chr(10))}: extra") as error:
        get_recipe(write("my.json", text))
    assert "evaluations" in str(error.value)
