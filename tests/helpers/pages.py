"""Files that a page of docs/ shows whole, and scripts that use them in a package of their own."""

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FILE = re.compile(r"<!-- file: (\S+) -->\n```\w*\n(.*?)```", re.DOTALL)


def shown_files(page: str) -> dict[str, str]:
    """name -> content of each block of docs/`page` that stands under `<!-- file: NAME -->`."""
    found = dict(_FILE.findall((ROOT / "docs" / page).read_text(encoding="utf-8")))
    assert found, f"docs/{page} shows no file"
    return found


def run_beside(files: dict[str, str], script: str, folder: Path, limit: float = 120) -> str:
    """What `script`, run by Python in `folder` beside those files, prints; it must end well within `limit` seconds."""
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    (folder / "script.py").write_text(script, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=folder, env=environment, capture_output=True, text=True, timeout=limit
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def import_beside(files: dict[str, str], name: str, folder: Path, monkeypatch):
    """The module `name` of those files, as a program in `folder` would import it."""
    (folder / f"{name}.py").write_text(files[f"{name}.py"], encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(sys.modules, name, None)  # with the end of the test it is gone
    del sys.modules[name]
    return import_module(name)
