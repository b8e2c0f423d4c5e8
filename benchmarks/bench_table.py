"""The tables of benchmarks/results/bench.md, from what `imp_ds bench` has written.

    python -m imp_ds bench runs/digits/model --output bench
    python benchmarks/bench_table.py bench

Reads the files of the suites, measures nothing, and takes a second. Writes Markdown to the terminal.
"""

import argparse
import json
import re
from pathlib import Path

SHOTS = ("1", "5", "10", "25", "all")


def metrics(folder: Path) -> dict[str, dict[str, float]]:
    """Of each file of a suite its metrics by name."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and "suite" in content:
            found[content["suite"]] = {metric["name"]: metric["value"] for metric in content["metrics"]}
            print(f"{content['suite']}: {content['date']}, {content['seconds']:.0f} s")
    return found


def plain_table(values: dict[str, float]) -> list[str]:
    """A row for each metric."""
    return ["| measure | value |", "| --- | ---: |", *(f"| {name} | {100 * value:.1f} % |" for name, value in values.items())]


def shots_table(values: dict[str, float]) -> list[str]:
    """A row for each evaluation and classifier, a column for each number of samples per class: mean and deviation over draws."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for name, value in values.items():
        _, of, measure = (name + "//").split("/")[:3]
        parts = re.fullmatch(r"(.+)_(\d+|all)", measure)
        if parts is None:
            continue
        spread = values.get(f"{name}_spread")
        written = f"{100 * value:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")
        rows.setdefault((of, parts[1]), {})[parts[2]] = written
    table = ["| of | classifier | " + " | ".join(SHOTS) + " |", "| --- | --- |" + " ---: |" * len(SHOTS)]
    return table + [f"| {of} | {what} | " + " | ".join(row.get(n, "") for n in SHOTS) + " |" for (of, what), row in rows.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what --output of `imp_ds bench` was")
    for suite, values in metrics(parser.parse_args().folder).items():
        table = shots_table(values) if suite in ("probe", "logistic") else plain_table(values)
        print("\n".join(["", f"## {suite}", "", *table]))


if __name__ == "__main__":
    main()
