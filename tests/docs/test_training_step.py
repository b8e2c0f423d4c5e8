"""docs/training_step.md: the step that it shows is the trainer's, what its tables name is there, here and in DeepSpeed."""

import ast
import re
from importlib.util import find_spec
from pathlib import Path

from helpers.pages import ROOT

PAGE = (ROOT / "docs" / "training_step.md").read_text(encoding="utf-8")
NAME = re.compile(r"`([A-Za-z_][\w.]*)`")
# where the methods and attributes of DeepSpeed that the page names are defined
SOURCES = ("runtime/zero", "runtime/engine.py", "runtime/fp16/loss_scaler.py", "runtime/base_optimizer.py", "moe/utils.py",
           "module_inject/auto_ep_layer.py", "ops/op_builder/cpu/comm.py")  # fmt: skip


def rows(text: str) -> list[list[str]]:
    """The cells of all rows of the tables in a text, without their headings."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [cells for cells in lines if "`" in cells[0]]


def defined(file: str) -> set[str]:
    """What a file defines: functions, classes, and methods as Class.method."""
    found = set()
    for node in ast.parse((ROOT / file).read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{method.name}" for method in node.body if isinstance(method, ast.FunctionDef)}
    return found


def test_the_step_is_that_of_the_trainer():
    (shown,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    source = (ROOT / "imp_ds" / "train" / "trainer.py").read_text()
    step = source[source.index("def _one_step") : source.index("def _exchange")]
    lines = [line.partition("  # ")[0].strip() for line in step.splitlines()]
    places = [lines.index(line) for line in shown.splitlines()]
    assert places == sorted(places) and len(places) == 6


def test_each_file_has_what_runs_in_it():
    files = PAGE[PAGE.index("## The files, in order") : PAGE.index("## The loss of a step")]
    found = rows(files)
    assert len(found) > 15
    for file, names, *_ in found:
        (path,) = re.findall(r"`(\S+\.py)`", file)
        missing = {name for name in NAME.findall(names)} - defined(path)
        assert not missing, (path, missing)


def test_what_is_replaced_is_there_in_both():
    package = Path(find_spec("deepspeed").origin).parent
    files = [path for name in SOURCES for path in ([package / name] if name.endswith(".py") else (package / name).glob("*.py"))]
    theirs = "\n".join(path.read_text() for path in files)
    replaced = PAGE[PAGE.index("## What of DeepSpeed is replaced") :]
    seen = 0
    for ours in ("imp_ds/train/engine/engine.py", "imp_ds/parallel/expert_parallel.py"):
        part = replaced[replaced.index(f"In `{ours}`:") + 1 :].partition("\nIn `")[0]
        source = (ROOT / ours).read_text()
        for cells in rows(part):
            for name in NAME.findall(cells[0]):
                seen += 1
                assert re.search(rf"\b{name}\b", source), (ours, name)
                assert re.search(rf"\b{name}\b", theirs), name
    assert seen > 15
