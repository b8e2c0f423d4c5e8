"""The comparison as one picture: a panel of bars for each measure, a bar for each variant, whiskers for the seeds."""

import io
import math
from pathlib import Path

from imp_ds.commands.comparison.measure import Measure, Spread
from imp_ds.commands.comparison.report import cell
from imp_ds.written_files import write_file

_COLUMNS = 4
# Okabe and Ito: apart for every eye; the first, which the others are compared with, is grey
_COLORS = ("#8a8f98", "#E69F00", "#D55E00", "#56B4E9", "#0072B2", "#009E73", "#CC79A7")


def draw_comparison(measures: list[Measure], found: dict[str, dict[str, Spread]], path: str | Path, *, title: str = "") -> None:
    """Write a PNG. found: {variant: {key of a measure: Spread}}."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = math.ceil(len(measures) / _COLUMNS)
    height = 0.9 + 0.3 * len(found)
    figure = Figure(figsize=(15, rows * height + 0.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).flatten()
    for number, (axes, measure) in enumerate(zip(panels, measures)):
        _draw_panel(axes, measure, found, named=number % _COLUMNS == 0)
    for axes in panels[len(measures) :]:
        axes.set_visible(False)
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    write_file(path, drawn.getvalue())


def _draw_panel(axes, measure: Measure, found: dict[str, dict[str, Spread]], *, named: bool) -> None:
    """Bars from the top down in the order of the variants, each with its number."""
    variants = list(found)
    values = [found[variant].get(measure.key) for variant in variants]
    means = [measure.scale * value.mean if value else math.nan for value in values]
    errors = [measure.scale * (value.deviation or 0.0) if value else 0.0 for value in values]
    colors = [_COLORS[place and 1 + (place - 1) % (len(_COLORS) - 1)] for place in range(len(variants))]
    axes.barh(range(len(variants)), means, color=colors, height=0.72)
    if any(errors):
        axes.errorbar(means, range(len(variants)), xerr=errors, fmt="none", ecolor="#222222", elinewidth=1.2, capsize=3)
    finite = [(mean, error) for mean, error in zip(means, errors) if math.isfinite(mean)]
    low, high = min([0.0, *(m - e for m, e in finite)]), max([0.0, *(m + e for m, e in finite)])
    room = (high - low) or 1.0
    for position, (value, mean, error) in enumerate(zip(values, means, errors)):
        end = max(0.0, mean + error) if math.isfinite(mean) else 0.0
        axes.text(end + 0.02 * room, position, cell(measure, value), va="center", fontsize=8, color="#222222")
    axes.set_xlim(low - 0.02 * room if low < 0 else 0.0, high + 0.42 * room)  # room for the numbers
    axes.set_yticks(range(len(variants)), variants if named else [""] * len(variants))
    axes.invert_yaxis()
    axes.locator_params(axis="x", nbins=5)
    axes.axvline(0, color="#222222", linewidth=0.8)
    axes.set_title(measure.heading, fontsize=10)
    axes.tick_params(length=0, labelsize=9)
    axes.grid(axis="x", color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "bottom", "left"]].set_visible(False)
