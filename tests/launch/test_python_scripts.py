"""Benchmarks and scripts run as `python benchmarks/NAME.py` in the project's folder, also where the project is not installed."""

import json
import sys

from helpers.processes import ROOT, run

FILES = [path for folder in ("benchmarks", "scripts") for path in sorted((ROOT / folder).glob("*.py"))]
COMMANDS = [path for path in FILES if "__main__" in path.read_text(encoding="utf-8")]


def test_each_gives_its_help():
    assert len(COMMANDS) > 15
    finished = run([sys.executable, "-P", ROOT / "tests" / "helpers" / "script_help.py", *COMMANDS], timeout=240)
    assert json.loads(finished.output.rpartition("found ")[2]) == {}
