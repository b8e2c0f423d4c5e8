"""requirements.txt against the imports of imp_ds: nothing is used that is not pinned there."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# part of torch's CUDA build, of the version that it needs; absent from the CPU build, where nothing uses it
WITH_TORCH = {"triton"}
# it imports us, and its pins clash with ours
HARNESSES = {"lmms_eval"}


def imported_packages() -> set[str]:
    """Top-level names of all absolute imports in imp_ds, outside the standard library and imp_ds itself."""
    names = set()
    for path in (ROOT / "imp_ds").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"imp_ds"}


def pins(path: Path) -> dict[str, str | None]:
    """{normalised name: pinned version, or None for a line that pins none}."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    pairs = (line.partition("==") for line in lines if line)
    return {normal(name): version or None for name, _, version in pairs}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def optional() -> set[str]:
    """Normalised names of the packages of pyproject's extras, which imp_ds uses where they are installed."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    return {normal(name.partition("==")[0]) for names in extras.values() for name in names}


def test_every_import_is_pinned():
    listed, owners = pins(ROOT / "requirements.txt"), packages_distributions()
    names = imported_packages()
    assert {"torch", "PIL", "sklearn"} <= names  # the search itself works
    names = {name for name in names - WITH_TORCH - HARNESSES if normal(name) not in optional()}
    unlisted = {name for name in names if not any(normal(owner) in listed for owner in owners.get(name, []))}
    assert not unlisted


def test_every_line_pins_one_version():
    for file in ("requirements.txt", "requirements-dev.txt"):
        loose = [name for name, version in pins(ROOT / file).items() if not re.fullmatch(r"\d+(\.\d+)+", version or "")]
        assert not loose, file
