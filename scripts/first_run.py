"""Walk docs/first_run.md command by command, on tiny data that it makes, in a temporary folder: about 2 minutes on two cores.

    python scripts/first_run.py [--before WORD]      --before: end before the first block of commands that holds WORD

`imp_ds` and `deepspeed` are those of PATH. Each line of output that the page shows must be printed, numbers aside. Exit code 1
where one is not, or where a command fails.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "first_run.md"
DATA = Path(__file__).with_name("first_run_data.py")
_BLOCK = re.compile(r"^```(python|bash|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"\d+([.,]\d+)*")
_KILLED = 137  # the block that kills its own run


def steps(page: str) -> list[tuple[str, list[str]]]:
    """[(commands, lines that they print)] of a page, in its order."""
    found = []
    for kind, text in _BLOCK.findall(page):
        if kind == "bash":
            found.append((text, []))
        elif kind == "text":
            found[-1][1].extend(text.splitlines())
    return found


def recipe(page: str) -> str:
    """The Python file that a page shows."""
    (text,) = [text for kind, text in _BLOCK.findall(page) if kind == "python"]
    return text


def missing(shown: list[str], output: str) -> list[str]:
    """Lines that the page shows and that were not printed; any number stands for any other."""
    output = _NUMBER.sub("0", output)
    return [line for line in shown if _NUMBER.sub("0", line).strip() not in output]


def walk(folder: Path, before: str | None) -> int:
    """The number of blocks that did not do what the page shows. Ends at the first."""
    page = PAGE.read_text()
    (folder / "my_recipe.py").write_text(recipe(page))
    subprocess.run([sys.executable, DATA, folder / "data"], check=True)
    environment = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "COLUMNS": "150", **os.environ}
    for commands, shown in steps(page):
        if before is not None and before in commands:
            return 0
        print(f"$ {commands.strip()}", flush=True)
        done = subprocess.run(
            ["bash", "-c", "set -o pipefail\n" + ("" if "kill -9" in commands else "set -e\n") + commands],
            cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300,
        )  # fmt: skip
        print(done.stdout, flush=True)
        lost = missing(shown, done.stdout)
        if done.returncode != (_KILLED if "kill -9" in commands else 0) or "Traceback" in done.stdout or lost:
            print(f"not as the page says: exit code {done.returncode}, not printed: {lost}")
            return 1
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", metavar="WORD")
    with tempfile.TemporaryDirectory(prefix="first_run") as folder:
        sys.exit(walk(Path(folder), parser.parse_args().before))
