"""Interference for people to see: a table for each weight on a terminal, a heat map for each in a picture."""

import io
import re
from pathlib import Path

from rich.table import Table

from imp_ds.evaluation.interference import Interference
from imp_ds.written_files import write_file

_READING = "row: the task that is affected; column: the task whose step it is; below 0 it harms"


def weight_title(name: str) -> str:
    """A parameter's name as people read it: "imp.blocks.3.feed_forward.down.weight" is "layer 3, feed_forward.down"."""
    return re.sub(r"^imp\.blocks\.(\d+)\.", r"layer \1, ", name).removesuffix(".weight")


def interference_tables(found: dict[str, Interference]) -> list[Table]:
    """One table for each weight; harm is red."""
    return [_table(weight_title(name), measured) for name, measured in found.items()]


def _table(title: str, measured: Interference) -> Table:
    table = Table(title=title, caption=f"{_READING}; averse: samples that a task's own steps would make worse")
    table.add_column("")
    for task in measured.tasks:
        table.add_column(task, justify="right")
    table.add_column("averse", justify="right")
    for task, row, averse in zip(measured.tasks, measured.matrix_KK.tolist(), measured.averse_K.tolist()):
        cells = [f"[red]{value:.2f}[/red]" if value < 0 else f"{value:.2f}" for value in row]
        table.add_row(task, *cells, str(averse))
    return table


def draw_interference(found: dict[str, Interference], path: str | Path, *, title: str = "") -> None:
    """Write a PNG: a heat map for each weight, red where a step harms and blue where it helps, white where it does nothing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    side = 1.6 + 0.55 * max(len(measured.tasks) for measured in found.values())
    figure = Figure(figsize=(len(found) * (side + 0.4) + 1.4, side + 1.0), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for number, (axes, (name, measured)) in enumerate(zip(panels, found.items())):
        image = _draw_matrix(axes, measured, weight_title(name), named=number == 0)
    figure.colorbar(image, ax=panels, label="interference (own step: 1)", fraction=0.04, pad=0.02)
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    write_file(path, drawn.getvalue())


def _draw_matrix(axes, measured: Interference, title: str, *, named: bool):
    """One heat map, and its numbers; the colours end at -1 and 1, which is where a task's own step is."""
    tasks = [task.replace("_", " ") for task in measured.tasks]
    image = axes.imshow(measured.matrix_KK, cmap="RdBu", vmin=-1, vmax=1)
    for row, values in enumerate(measured.matrix_KK.tolist()):
        for column, value in enumerate(values):
            color = "white" if abs(value) > 0.6 else "#222222"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=color)
    axes.set_xticks(range(len(tasks)), tasks, rotation=45, ha="right")
    axes.set_yticks(range(len(tasks)), tasks if named else [""] * len(tasks))
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("a step of")
    if named:
        axes.set_ylabel("affects")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image
