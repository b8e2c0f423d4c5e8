"""docs/first_run.md: its commands do what it says. Those that train are walked by `python scripts/first_run.py`, in 2 minutes."""

import sys

import pytest

from helpers.processes import ROOT, environment, run
from imp_ds.recipes import get_recipe

sys.path.append(str(ROOT / "scripts"))
import first_run  # noqa: E402

PAGE = first_run.PAGE.read_text()


@pytest.fixture
def commands(tmp_path):
    """An environment whose PATH has `imp_ds`, as an installed package has it."""
    command = tmp_path / "bin" / "imp_ds"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m imp_ds "$@"\n')
    command.chmod(0o755)
    found = environment(PYTHONPATH=str(ROOT))
    return {**found, "PATH": f"{command.parent}:{found['PATH']}"}


def test_the_recipe_of_the_page_is_one_and_reads_the_data_that_the_page_names(tmp_path):
    (tmp_path / "my_recipe.py").write_text(first_run.recipe(PAGE))
    run = get_recipe(str(tmp_path / "my_recipe.py"))
    paths = {task.source.path for task in run.tasks}
    assert paths == {"photos", "recordings.csv", "videos", "captions.parquet"}
    assert all(f"data/{path}" in PAGE for path in paths)


def test_lines_that_are_not_printed_are_found():
    shown = ["  classes: 2 of 2: cat 20, dog 19", "wrote x: 25 files"]
    assert first_run.missing(shown, "a\n  classes: 3 of 3: cat 1,200, dog 7\nwrote x: 4 files, 1 left out") == []
    assert first_run.missing(shown, "  classes: 2 of 2: cat 20, cow 19\nwrote x: 25 files") == shown[:1]


def test_data_as_a_stranger_has_it_is_checked(tmp_path, commands):
    output = run([sys.executable, first_run.__file__, "--before", "data show"], timeout=200, cwd=tmp_path, env=commands).output
    assert "$ imp_ds data check my_recipe.py" in output and "$ imp_ds data show" not in output
