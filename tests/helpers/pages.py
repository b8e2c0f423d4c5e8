"""Files that a page of docs/ shows whole, and scripts that use them in a package of their own."""

import os
import re
import runpy
import sys
from importlib import import_module
from pathlib import Path

from helpers.ranks import run_ranks

ROOT = Path(__file__).parents[2]
_FILE = re.compile(r"<!-- file: (\S+) -->\n```\w*\n(.*?)```", re.DOTALL)


def shown_files(page: str) -> dict[str, str]:
    """name -> content of each block of docs/`page` that stands under `<!-- file: NAME -->`."""
    found = dict(_FILE.findall((ROOT / "docs" / page).read_text(encoding="utf-8")))
    assert found, f"docs/{page} shows no file"
    return found


def run_beside(files: dict[str, str], script: str, folder: Path, limit: float = 120) -> str:
    """What `script`, run as a program in `folder` beside those files, prints; it must end well within `limit` seconds."""
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    (folder / "script.py").write_text(script, encoding="utf-8")
    alone = dict.fromkeys(("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    return run_ranks(_run, folder, ranks=1, folder=folder / "logs", limit_s=limit, environ=alone).outputs[0]


def _run(folder: Path) -> None:
    """`python script.py` in a process that has imported all that it needs."""
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    sys.argv = ["script.py"]
    runpy.run_path("script.py", run_name="__main__")


def import_beside(files: dict[str, str], name: str, folder: Path, monkeypatch):
    """The module `name` of those files, as a program in `folder` would import it."""
    (folder / f"{name}.py").write_text(files[f"{name}.py"], encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(sys.modules, name, None)  # with the end of the test it is gone
    del sys.modules[name]
    return import_module(name)
