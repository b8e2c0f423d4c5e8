"""The recipe on docs/stages.md is one, and is what the page says of it."""

import re

from helpers.processes import ROOT
from imp_ds.recipes import get_recipe
from imp_ds.train.stages.job import Job
from imp_ds.train.stages.waves import waves

PAGE = ROOT / "docs" / "stages.md"


def test_the_recipe_of_the_page_is_taken(tmp_path):
    (text,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "mine.py").write_text(text)
    staged = get_recipe(str(tmp_path / "mine.py"))
    jobs = [Job(stage.name) for stage in staged.stages]
    assert [[job.stage for job in wave] for wave in waves(staged, jobs, 2, side_by_side=True)] == [["medicine", "law"], ["both"]]
    changed = staged.override(["law.train.steps=100", "*.data.root=elsewhere"])  # as the page has it
    assert [stage.run.train.steps for stage in changed.stages] == [2000, 100, 2000]
    assert staged.needed("both") == ["medicine", "law"] and max(map(len, PAGE.read_text().splitlines())) <= 140
