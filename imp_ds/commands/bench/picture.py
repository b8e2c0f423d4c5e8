"""The picture of `imp_ds bench`: the main scores as bars, and few-shot curves."""

import io
from pathlib import Path

from imp_ds.commands.bench.results import probe_curves
from imp_ds.evaluation.metric import Metric
from imp_ds.written_files import write_result

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222")  # Okabe and Ito: apart for every eye
_MOST_BARS = 40


def draw(metrics: list[Metric], path: Path, title: str) -> None:
    """Write a PNG of the metrics that are seen at a glance, and beside them accuracy over the samples of each class."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bars = [metric for metric in metrics if metric.shown is not None][:_MOST_BARS]
    curves = probe_curves(metrics)
    figure = Figure(figsize=(8 + 6 * bool(curves), max(4.5, 0.28 * len(bars) + 1.5)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(1, 1 + bool(curves), squeeze=False)[0])
    _draw_bars(panels[0], bars)
    if curves:
        _draw_curves(panels[1], curves)
    figure.suptitle(title, fontsize=13, fontweight="bold")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    write_result(path, drawn.getvalue())


def _draw_bars(axes, bars: list[Metric]) -> None:
    kinds = list(dict.fromkeys(metric.shown.heading for metric in bars))
    colours = [_COLOURS[kinds.index(metric.shown.heading) % len(_COLOURS)] for metric in bars]
    places = range(len(bars))
    axes.barh(places, [100 * metric.value for metric in bars], color=colours)
    axes.set_yticks(
        places, [f"{metric.of.replace('_', ' ')}: {metric.shown.heading} {metric.shown.label}".strip() for metric in bars]
    )
    for place, metric in enumerate(bars):
        axes.text(100 * metric.value + 0.8, place, metric.written(), va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(0, 112), xlabel="%", title="Scores")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_curves(axes, curves: dict[str, list[tuple[int, float, float]]]) -> None:
    names = list(dict.fromkeys(name.partition(",")[0] for name in curves))
    for name, points in curves.items():
        samples, values, spreads = zip(*points)
        colour = _COLOURS[names.index(name.partition(",")[0]) % len(_COLOURS)]
        axes.errorbar(
            samples, [100 * value for value in values], yerr=[100 * spread for spread in spreads], label=name, marker="o",
            color=colour, capsize=3, linestyle="--" if name.endswith("knn") else "-",
        )  # fmt: skip
    ticks = sorted({samples for points in curves.values() for samples, _, _ in points})
    axes.set_xscale("log")
    axes.set_xticks(ticks, ticks)
    axes.minorticks_off()
    axes.set(title="Few samples of each class", xlabel="training samples of each class", ylabel="accuracy in %", ylim=(0, 102))
    axes.grid(color="#e3e6ea", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
