"""The modules of imp_ds as what is written in them: their syntax trees, and what each of them imports."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "imp_ds"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def text_of(path: Path) -> str:
    return path.read_text()


@cache
def tree_of(path: Path) -> ast.Module:
    """To be read only."""
    return ast.parse(text_of(path))


def imported(tree: ast.AST, module: str, is_package: bool, known) -> set[str]:
    """The modules that a source imports, wherever in it: full names, `from package import module` resolved by `known`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".") if is_package else module.split(".")[:-1]
            base = parents[: len(parents) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            below = {f"{origin}.{alias.name}" for alias in node.names}
            names.update(name if name in known else origin for name in below)
    return names


@cache
def imports_of(module: str) -> frozenset[str]:
    """Of a module of imp_ds: of its own package, and of others."""
    path = MODULES[module]
    return frozenset(imported(tree_of(path), module, is_package(module), MODULES))


def is_package(module: str) -> bool:
    return MODULES[module].name == "__init__.py"


def room_of(module: str) -> str:
    """The package that a module lies in; a package is its own."""
    return module if is_package(module) else module.rpartition(".")[0]
