"""What Uni-MoE published of its experts (arXiv 2405.11273, tables 7 to 9), in percent, by our names of the variants."""

from collections.abc import Sequence
from typing import NamedTuple

from imp_ds.commands.comparison.measure import Measure, Spread
from imp_ds.commands.comparison.report import cell


class Published(NamedTuple):
    """A table: columns, and {variant: a number for each}."""

    title: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[float, ...]]


TABLES = (
    Published(
        "Experts of a token (table 7)", ("A-OKVQA", "OK-VQA", "RACE middle", "RACE high"),
        {"top_1": (66.46, 62.76, 45.13, 42.42), "top_2": (66.20, 63.02, 46.31, 43.71)},
    ),
    Published(
        "Number of experts (table 7)", ("A-OKVQA", "OK-VQA"),
        {"experts_1": (65.68, 56.12), "experts_2": (65.75, 62.04), "experts_4": (66.20, 63.02)},
    ),
    Published(
        "Layers with experts (table 7)", ("A-OKVQA", "RACE middle", "RACE high"),
        {"first_half": (65.68, 38.16, 41.14), "second_half": (63.97, 51.39, 52.69), "interval": (64.54, 46.17, 46.60),
         "all": (66.20, 46.31, 43.71)},
    ),
    Published(
        "Balance loss of four pre-trained experts (table 8)", ("mean of all sets",), {"no_balance": (49.2,), "balance": (48.5,)}
    ),
    Published(
        "More experts, and their balance loss (table 9)",
        ("A-OKVQA", "OK-VQA", "VQAv2", "MMBench", "POPE", "SEED", "MM-Vet", "ActivityNet-QA"),
        {"experts_4": (70.22, 66.02, 76.4, 73.2, 86.0, 63.4, 32.6, 45.6),
         "experts_8": (70.0, 66.2, 76.6, 73.0, 86.2, 63.3, 32.5, 46.0),
         "experts_8+balance": (70.7, 66.4, 76.7, 73.2, 86.3, 63.4, 32.8, 46.4)},
    ),
)  # fmt: skip


def beside(measures: Sequence[Measure], found: dict[str, dict[str, Spread]]) -> list[str]:
    """Of each published table of which two variants were compared here: its rows, with our measures behind them."""
    ours = {frozenset(name.split("+")): name for name in found}
    lines = []
    for published in TABLES:
        rows = [(ours[key], numbers) for name, numbers in published.rows.items() if (key := frozenset(name.split("+"))) in ours]
        if len(rows) < 2:
            continue
        heads = [*published.columns, *(f"ours: {measure.heading}" for measure in measures)]
        lines += [f"### {published.title}", "", f"| variant | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(heads)]
        for name, numbers in rows:
            own = [cell(measure, found[name].get(measure.key)) for measure in measures]
            lines.append(f"| {name} | {' | '.join([*(f'{number:.4g}' for number in numbers), *own])} |")
        lines.append("")
    return ["## Beside the paper", "", *lines] if lines else []
