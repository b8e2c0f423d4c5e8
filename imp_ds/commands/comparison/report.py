"""The comparison for people and programs to read: README.md with its tables, and table.json with every number of every run."""

import datetime
import math
import os
import platform
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from imp_ds.commands.comparison.measure import Measure, Spread
from imp_ds.written_files import write_file, write_json

TABLE, PAGE, PICTURE = "table.json", "README.md", "comparison.png"


def facts(command: str, steps: int, seeds: int, **more) -> dict:
    """What the numbers hang on, and more of it by name."""
    packages = {name: version(name) for name in ("torch", "deepspeed", "transformers")}
    return {
        "command": command, "steps": steps, "seeds": seeds, **more,
        "date": datetime.date.today().isoformat(), "machine": machine(), "cores": len(os.sched_getaffinity(0)),
        "versions": {"python": platform.python_version(), **packages},
    }  # fmt: skip


def machine() -> str:
    """The GPU's name where there is one, else the processor's as Linux knows it."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    known = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:\s*(.+)$", known.read_text(), re.MULTILINE) if known.is_file() else None
    return named[1] if named else platform.machine()


def write_table(out: Path, study: dict, values: dict[str, list[dict[str, float]]], details: dict, *, of: str) -> None:
    """table.json: what the numbers hang on, {variant: the numbers of each seed} under the name `of`, and details beside them."""
    full = {"facts": study, of: values, "details": details}
    write_json(out / TABLE, _finite(full))


def write_page(
    out: Path, study: dict, found: dict[str, dict[str, Spread]], sections: dict[str, Sequence[Measure]], notes: list[str], *,
    title: str, of: str, beside: Sequence[str] = (),
) -> None:  # fmt: skip
    """README.md: the tables of the sections, the picture, and how it was measured.

    found: {variant: {name: Spread}}. title: of the page; of: what a variant is called. beside: lines after the tables.
    """
    lines = [f"# {title}", "", *_head(study), "", f"![{PICTURE}]({PICTURE})", ""]
    for section, measures in sections.items():
        if there := shown(measures, found):
            lines += [f"## {section}", "", *table(there, found, of), ""]
    lines += [*beside, "## How it was measured", "", *(f"- {note}" for note in notes)]
    write_file(out / PAGE, "\n".join(lines) + "\n")


def shown(measures: Sequence[Measure], found: dict[str, dict[str, Spread]]) -> list[Measure]:
    """Those that some variant has."""
    return [measure for measure in measures if any(measure.key in values for values in found.values())]


def table(measures: list[Measure], found: dict[str, dict[str, Spread]], of: str) -> list[str]:
    """A row for each variant, a column for each measure; `of` stands above the variants."""
    lines = [f"| {of} | {' | '.join(measure.heading for measure in measures)} |", "| --- |" + " ---: |" * len(measures)]
    for variant, values in found.items():
        lines.append(f"| {variant} | {' | '.join(cell(measure, values.get(measure.key)) for measure in measures)} |")
    return lines


def cell(measure: Measure, found: Spread | None) -> str:
    """Mean and deviation, "93.1 ± 0.4"; the mean alone where all seeds have the same by their nature, or there is one."""
    if found is None:
        return "-"
    mean = f"{measure.scale * found.mean:.{measure.digits}f}"
    return f"{mean} ± {measure.scale * found.deviation:.{measure.digits}f}" if found.deviation else mean


def _head(study: dict) -> list[str]:
    packages = ", ".join(f"{name} {number}" for name, number in study["versions"].items())
    seeds = f"{study['seeds']} seeds: mean ± standard deviation" if study["seeds"] > 1 else "one seed"
    return [
        f"{study['date']}, {study['machine']}, {study['cores']} cores; {packages}.",
        f"{study['steps']} steps of each run; {seeds}. `{study['command']}` makes this folder.",
    ]


def _finite(value):
    """The same with null for what JSON cannot hold."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
