"""What is wrong with `python SCRIPT --help`, for each script on the command line, where the project is not installed."""

import ast
import json
import os
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

OURS = {"imp_ds", "benchmarks", "helpers"}


def imported(path: Path) -> set[str]:
    """Packages of the project that a file imports anywhere, unless it sets the path of children that it does so in."""
    text = path.read_text(encoding="utf-8")
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {node.module or ""} if isinstance(node, ast.ImportFrom) else {name.name for name in node.names}
    return set() if "PYTHONPATH" in text else {name.partition(".")[0] for name in found} & OURS


def shown(path: Path) -> str | None:
    """What is wrong with `python PATH --help` in this process, which knows the project only if the file tells it."""
    sys.argv, sys.path[:] = [str(path), "--help"], [str(path.parent), *sys.path]
    try:
        runpy.run_path(str(path), run_name="__main__")
        return "took --help for something else"
    except SystemExit as end:
        if end.code:
            return f"exit code {end.code}"
    except Exception as error:  # what a user would see the traceback of
        return f"{type(error).__name__}: {error}"
    lacking = [name for name in imported(path) if find_spec(name) is None]
    return f"imports {lacking} later, and does not find it" if lacking else None


def main(paths: list[str]) -> None:
    """Each in a fork of its own: torch and transformers are imported once for all."""
    sys.path[:] = [folder for folder in sys.path if not (Path(folder or os.curdir) / "imp_ds").is_dir()]
    sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
    assert find_spec("imp_ds") is None, sys.path
    import transformers.modeling_utils  # noqa: F401

    wrong = {}
    for path in map(Path, paths):
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            os.write(writer, (shown(path) or "").encode()[:4000])
            os._exit(0)
        os.close(writer)
        os.waitpid(child, 0)
        if problem := os.read(reader, 4000).decode():
            wrong[path.name] = problem
        os.close(reader)
    sys.stderr.write(f"\nfound {json.dumps(wrong)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
