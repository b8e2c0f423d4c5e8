"""What pages and docstrings name of the project is there: modules and what stands in them, files, pages and their headings."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "benchmarks/results").rglob("*.md"))]
FOLDERS = "imp_ds|benchmarks|tests|scripts|docs|ds_configs|hostfiles"
DOTTED = re.compile(r"(?<![\w./@-])imp_ds(?:\.[A-Za-z_]\w*)+")
FILE = re.compile(rf"(?<![\w./-])(?:{FOLDERS})/[\w./-]*\w(?![\w*{{])")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


def docstrings(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return "\n".join(ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented))


def is_there(name: str) -> bool:
    """Whether a dotted name is a module, or is bound in one."""
    place, parts = ROOT, name.split(".")
    while parts and (place / parts[0]).is_dir():
        place /= parts.pop(0)
    file = place / f"{parts[0]}.py" if parts and (place / f"{parts[0]}.py").is_file() else place / "__init__.py"
    rest = parts[file.name != "__init__.py" :]
    if not rest or not file.is_file():
        return not rest
    bound = rf"^\s*(?:def|class) {rest[0]}\b|^{rest[0]}\b.*=|^(?:from .* )?import\b.*\b{rest[0]}\b|^\s+\"?{rest[0]}\b\"?,"
    return re.search(bound, file.read_text(encoding="utf-8"), re.MULTILINE) is not None


def missing(text: str) -> list[str]:
    """What a text names of the project, and is not there. A file that stands for several, as NAME.json does, is none."""
    names = [name for name in DOTTED.findall(text) if not is_there(name)]
    return names + [file for file in FILE.findall(text) if "NAME" not in file and not (ROOT / file).exists()]


def test_the_check_tells_what_is_there():
    there = "`imp_ds.modalities.media.Media`, `imp_ds.Task`, README.md, docs/*"
    text = f"{there} imp_ds.config.nothing, imp_ds.nowhere.x, tests/none.py"
    assert missing(text) == ["imp_ds.config.nothing", "imp_ds.nowhere.x", "tests/none.py"]


def test_what_docstrings_name_is_there():
    files = [path for folder in ("imp_ds", "benchmarks", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))]
    assert {str(path.relative_to(ROOT)): found for path in files if (found := missing(docstrings(path)))} == {}


def test_what_pages_name_and_link_to_is_there():
    found = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)  # examples name files of the reader's own
        broken = [link for link, heading in LINK.findall(prose) if not target_is_there(page, link, heading)]
        if broken := broken + missing(prose):
            found[page.name] = broken
    assert found == {}


def target_is_there(page: Path, link: str, heading: str) -> bool:
    target = page.parent / link if link else page
    if not target.exists() or not heading:
        return target.exists()
    headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
    return heading in [re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in headings]
