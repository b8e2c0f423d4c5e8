"""The comparison as one picture: a panel of bars for each measure, a bar for each router, whiskers for the seeds."""

import io
import math
from pathlib import Path

from imp_ds.commands.comparison.measures import Measure, Spread
from imp_ds.commands.comparison.report import cell
from imp_ds.written_files import write_file

_COLUMNS = 4
# Okabe and Ito: apart for every eye; what is the same in every run is grey
_COLORS = {
    "dense": "#8a8f98", "token": "#E69F00", "context": "#D55E00", "modality": "#56B4E9", "task": "#0072B2",
    "attribute": "#009E73",
}  # fmt: skip


def draw_comparison(measures: list[Measure], found: dict[str, dict[str, Spread]], path: str | Path, *, title: str = "") -> None:
    """Write a PNG. found: {router: {key of a measure: Spread}}."""
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
    """Bars from the top down in the order of the routers, each with its number."""
    routers = list(found)
    values = [found[router].get(measure.key) for router in routers]
    means = [measure.scale * value.mean if value else math.nan for value in values]
    errors = [measure.scale * (value.deviation or 0.0) if value else 0.0 for value in values]
    axes.barh(range(len(routers)), means, color=[_COLORS[router] for router in routers], height=0.72)
    if any(errors):
        axes.errorbar(means, range(len(routers)), xerr=errors, fmt="none", ecolor="#222222", elinewidth=1.2, capsize=3)
    finite = [(mean, error) for mean, error in zip(means, errors) if math.isfinite(mean)]
    low, high = min([0.0, *(m - e for m, e in finite)]), max([0.0, *(m + e for m, e in finite)])
    room = (high - low) or 1.0
    for position, (value, mean, error) in enumerate(zip(values, means, errors)):
        end = max(0.0, mean + error) if math.isfinite(mean) else 0.0
        axes.text(end + 0.02 * room, position, cell(measure, value), va="center", fontsize=8, color="#222222")
    axes.set_xlim(low - 0.02 * room if low < 0 else 0.0, high + 0.42 * room)  # room for the numbers
    axes.set_yticks(range(len(routers)), routers if named else [""] * len(routers))
    axes.invert_yaxis()
    axes.locator_params(axis="x", nbins=5)
    axes.axvline(0, color="#222222", linewidth=0.8)
    axes.set_title(measure.heading, fontsize=10)
    axes.tick_params(length=0, labelsize=9)
    axes.grid(axis="x", color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "bottom", "left"]].set_visible(False)
