"""`imp_ds recipes`: the list, what show and copy write, and the page of fields."""

from pathlib import Path

import pytest

from imp_ds.commands.fields import page, records
from imp_ds.commands.recipes import copied, listed, shown
from imp_ds.errors import UserError
from imp_ds.recipes import RECIPES, get_recipe
from imp_ds.stages import StagedRun

ROOT = Path(__file__).parents[2]


def test_the_list_has_a_line_for_each_recipe():
    assert [line.split()[0] for line in listed().splitlines()] == list(RECIPES)
    assert all(len(line.split()) > 4 for line in listed().splitlines())


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_shown_or_copied_is_the_equal_run(name, tmp_path):
    run = get_recipe(name)
    run = run.override([('*.' if isinstance(run, StagedRun) else '') + 'data.root=C:\\a "b"\n\u00e4'])
    (tmp_path / "short.yaml").write_text(shown(run), encoding="utf-8")
    (tmp_path / "long.yaml").write_text(shown(run, full=True), encoding="utf-8")
    copied(run, name, tmp_path / "mine.py")
    for file in ("short.yaml", "long.yaml", "mine.py"):
        assert get_recipe(str(tmp_path / file)) == run, file
    assert max(map(len, (tmp_path / "mine.py").read_text().splitlines())) <= 200


def test_a_copy_replaces_nothing(tmp_path):
    (tmp_path / "mine.py").write_text("mine")
    with pytest.raises(UserError, match="there already"):
        copied(get_recipe("digits"), "digits", tmp_path / "mine.py")
    assert (tmp_path / "mine.py").read_text() == "mine"
    with pytest.raises(UserError, match="ends in .py"):
        copied(get_recipe("digits"), "digits", tmp_path / "mine.yaml")
    reported = f"folder of the recipe is not there\n  got: +{tmp_path}/my x\n  fix: +mkdir -p '{tmp_path}/my x'"
    with pytest.raises(UserError, match=reported):
        copied(get_recipe("digits"), "digits", tmp_path / "my x" / "mine.py")


def test_every_field_says_what_it_is():
    fields = [(kind.__name__, name, field) for kind in records() for name, field in kind.model_fields.items()]
    assert len(fields) > 120
    assert [(kind, name) for kind, name, field in fields if not field.description] == []


def test_the_page_of_fields_is_that_of_the_records():
    """`imp_ds recipes fields > docs/configuration.md` makes it anew."""
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == page()
    assert "| `batch_size` | `int` | required | ≥ 1 | samples of one optimizer step, over all ranks |" in page()
