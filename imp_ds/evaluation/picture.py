"""The results of a run as one picture: accuracy and retrieval by task over steps, and which experts each modality uses."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imp_ds.evaluation.metric import ACCURACY, Metric, Panel, read_metric
from imp_ds.written_files import write_file

PICTURE = "results.png"  # in the folder of a run, and of an exported model
_PALE = ("#a9cce3", "#f5cba7", "#a9dfbf", "#d7bde2", "#f1948a", "#c8ccd0", "#f9e79f", "#a3e4d7")
_BOLD = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222")  # Okabe and Ito: apart for every eye


def draw(history: list[dict], usage: dict[str, list[list[float]]], path: str | Path, *, title: str = "", layers: list[int] = ()):
    """Write a PNG.

    Args:
        history: lines of metrics.jsonl (`train.recording.monitor`): "evaluation" lines give the thick curves, or stars when the
            split is "test", "train" lines the pale ones.
        usage: {modality: [layer][expert] share of the combine weight}; {} for a dense encoder, which has no such panel.
        layers: index in the encoder of each MoE layer; counted from 0 when not given.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Without pyplot: no global state, no display, whatever the process does besides.
    others = [panel for panel in panels_of(history) if panel != ACCURACY]
    count = 1 + len(others) + bool(usage)
    figure = Figure(figsize=(max(8, 1 + 6 * count), 5.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(1, count, squeeze=False)[0])
    draw_accuracy(panels[0], history)
    for axes, panel in zip(panels[1:], others):
        draw_panel(axes, history, panel)
    if usage:
        draw_usage(panels[-1], usage, list(layers))
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    write_file(path, drawn.getvalue())


def panels_of(history: list[dict]) -> list[Panel]:
    """The panels that the metrics of all evaluations are drawn in, as they come."""
    evaluated = (line for line in history if line.get("split") in ("validation", "test"))
    return list(dict.fromkeys(metric.shown.panel for line in evaluated for metric in _drawn(line)))


class Curve(NamedTuple):
    """steps, values as they are drawn (shares in percent), and the last of its metrics."""

    steps: list[int]
    values: list[float]
    metric: Metric


def curves(history: list[dict], split: str, panel: Panel) -> dict[str, Curve]:
    """Name -> curve of what a panel shows of the evaluations on a split. A name is what is measured, as retrieval's direction,
    and behind it what distinguishes metrics of one thing."""
    found = {}
    for line in (line for line in history if line.get("split") == split):
        for metric in _drawn(line):
            if metric.shown.panel == panel:
                name, value = metric.of + metric.shown.curve, metric.value * (100 if metric.unit == "share" else 1)
                steps, values, _ = found.get(name, ([], [], None))
                found[name] = Curve([*steps, line["step"]], [*values, value], metric)
    return found


def _drawn(line: dict) -> list[Metric]:
    """The metrics of an evaluation's line that have a panel and a value."""
    facts = line.get("metrics", {})
    known = [read_metric(name, value, facts[name]) for name, value in line.get("results", {}).items() if value is not None]
    return [metric for metric in known if metric.shown is not None and metric.shown.panel is not None]


def training_curves(history: list[dict]) -> dict[str, tuple[list[int], list[float]]]:
    """Task -> (steps, mean of its training accuracies in percent)."""
    curves = {}
    for line in history:
        for task, values in line.get("tasks", {}).items():
            accuracies = [value for name, value in values.items() if name.startswith("accuracy/") and value is not None]
            if accuracies:
                steps, means = curves.setdefault(task, ([], []))
                steps.append(line["step"])
                means.append(100 * sum(accuracies) / len(accuracies))
    return curves


def draw_accuracy(axes, history: list[dict]) -> None:
    """Accuracy of each evaluation on the validation split, thick, that of classification heads dashed, over the accuracy of each
    task on its training batches, thin and pale. On the test split it is a star, and the number in the legend."""
    faint = [
        axes.plot(*curve, color=_PALE[i % len(_PALE)], linewidth=1.3, label=task.replace("_", " "))[0]
        for i, (task, curve) in enumerate(training_curves(history).items())
    ]
    bold, test = _plot_curves(axes, history, ACCURACY)
    _dress(axes, ACCURACY, "%")
    _legend_below(axes, {_heading(ACCURACY, test): bold, "on training batches": faint})


def draw_panel(axes, history: list[dict], panel: Panel) -> None:
    """The curves of another panel on the validation split, such as the share of queries whose own match ranks first (R@1) by
    direction; stars on the test split."""
    bold, test = _plot_curves(axes, history, panel)
    found = [*curves(history, "validation", panel).values(), *curves(history, "test", panel).values()]
    shares = all(curve.metric.unit == "share" for curve in found)
    _dress(axes, panel, _unit(found[0].metric))
    if shares:  # retrieval among many is low: show it all the same
        highest = max((max(line.get_ydata(), default=0) for line in axes.get_lines()), default=0)
        axes.set_ylim(0, min(102, max(5, 1.15 * highest)))
    else:
        axes.autoscale(axis="y")
    _legend_below(axes, {_heading(panel, test): bold})


def _heading(panel: Panel, test: bool) -> str:
    return f"{panel.metric} (\u2605: test)" if test else f"{panel.metric}, last value"


def _unit(metric: Metric) -> str:
    return "%" if metric.unit == "share" else metric.unit


def _plot_curves(axes, history: list[dict], panel: Panel) -> tuple[list, bool]:
    """The lines, with their last value in their labels, and whether any of them has a value on the test split."""
    validation, test = curves(history, "validation", panel), curves(history, "test", panel)
    lines = []
    for i, name in enumerate(dict.fromkeys([*validation, *test])):
        style = dict(color=_BOLD[i % len(_BOLD)], zorder=3, clip_on=False)
        last = (test.get(name) or validation[name]).metric
        steps, values = validation[name][:2] if name in validation else ([], [])
        lines += axes.plot(
            steps, values, **style, linewidth=2.6, linestyle="--" if last.shown.dashed else "-",
            marker="o", markersize=5.5, label=f"{name.replace('_', ' ')}: {last.written()}",
        )  # fmt: skip
        if name in test:
            axes.plot(*test[name][:2], **style, linestyle="none", marker="*", markersize=15, markeredgecolor="white")
    return lines, bool(test)


def _dress(axes, panel: Panel, unit: str) -> None:
    label = f"{panel.axis} in {unit}" if unit else panel.axis
    axes.set(title=panel.title, xlabel="optimizer steps", ylabel=label, ylim=(0, 102))
    axes.set_xlim(left=0)
    axes.grid(color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend_below(axes, groups: dict[str, list]) -> None:
    """One legend under the axes, where it hides no curve: each group under its heading, over two columns when it is long."""
    columns = []
    for heading, handles in groups.items():
        if handles:
            half = -(-len(handles) // (2 if len(handles) > 4 else 1))
            columns += [(heading, handles[:half])] + ([("", handles[half:])] if handles[half:] else [])
    if not columns:
        return
    rows = max(len(handles) for _, handles in columns)
    blank = lambda label="": axes.plot([], [], linestyle="none", label=label)[0]  # noqa: E731
    cells, headings = [], []
    for heading, handles in columns:
        headings.append(len(cells) if heading else None)
        cells += [blank(heading), *handles, *(blank() for _ in range(rows - len(handles)))]
    style = dict(loc="upper left", bbox_to_anchor=(0, -0.12), ncols=len(columns), frameon=False, fontsize=9, columnspacing=1.6)
    names = ["" if cell.get_label().startswith("_") else cell.get_label() for cell in cells]  # an unnamed line is called _child
    legend = axes.legend(cells, names, **style)
    for place in headings:
        if place is not None:
            legend.get_texts()[place].set_fontweight("bold")


def draw_usage(axes, usage: dict[str, list[list[float]]], layers: list[int]) -> None:
    """A heat map: a row for each modality, a column for each expert of each layer; the shares of a layer sum to 100 %."""
    shares = np.array([[share for layer in usage[modality] for share in layer] for modality in usage]) * 100
    counts = [len(layer) for layer in next(iter(usage.values()))]
    layers = layers or list(range(len(counts)))
    even = 100 / counts[0]
    image = axes.imshow(shares, aspect="auto", cmap="YlGnBu", vmin=0, vmax=max(float(shares.max()), 2 * even))
    starts = np.cumsum([0, *counts])
    axes.set_yticks(range(len(usage)), [modality.replace("_", " ") for modality in usage])
    if sum(counts) <= 32:
        axes.set_xticks(range(sum(counts)), [expert for count in counts for expert in range(count)])
        _write_shares(axes, shares, image)
    else:
        axes.set_xticks(starts[:-1], ["0"] * len(counts))
    for start in starts[1:-1]:
        axes.axvline(start - 0.5, color="white", linewidth=5 if sum(counts) <= 32 else 2)
    for row in range(1, len(usage)):
        axes.axhline(row - 0.5, color="white", linewidth=1.5)
    for layer, start, count in zip(layers, starts, counts):
        axes.text(start + (count - 1) / 2, -0.58, f"layer {layer}", ha="center", va="bottom", fontsize=10)
    axes.set_title("Experts used by each modality", pad=24)
    axes.set_xlabel("expert (in each row, the shares of a layer sum to 100 %)")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.figure.colorbar(image, ax=axes, label=f"share of the combine weight in % (even: {even:.3g})", fraction=0.04, pad=0.02)


def _write_shares(axes, shares: np.ndarray, image) -> None:
    """The numbers in the cells, dark on light and light on dark."""
    size = 9 if shares.shape[1] <= 16 else 7
    for (row, column), share in np.ndenumerate(shares):
        dark = image.norm(share) > 0.6
        axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=size, color="white" if dark else "#222222")
