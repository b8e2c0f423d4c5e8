"""Charts as inline SVG: curves over steps with axes, units and a legend, and shares of experts as a grid of cells."""

import math
from typing import NamedTuple

from imp_ds.commands.report.page import safe

COLOURS = 12
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 560, 260, 56, 38, 10, 24
_POINTS = 400  # of a curve; a longer one is thinned out evenly
STYLE = """
svg { display: block; max-width: 100%; height: auto } svg text { fill: var(--soft); font: 11px system-ui, sans-serif }
.grid { stroke: var(--line); stroke-width: 1 } .curve { fill: none; stroke-width: 1.8; stroke-linejoin: round }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .3rem 0 0 .4rem; font-size: 13px; max-width: 34rem }
.legend svg { display: inline-block; vertical-align: middle; margin-right: .35rem }
figure h3 { font-size: .95rem; margin: 0 0 .3rem; font-weight: 600 }
"""


class Curve(NamedTuple):
    """A curve: its name in the legend, its points (step, value), its colour's number, and how it is drawn."""

    name: str
    points: list[tuple[float, float]]
    colour: int
    dashed: bool = False


def chart(title: str, curves: list[Curve], unit: str, x_label: str = "optimizer steps") -> str:
    """A figure; "" where no curve has a point. Values that are not finite leave a gap."""
    curves = [curve for curve in curves if any(math.isfinite(y) for _, y in curve.points)]
    if not curves:
        return ""
    known = [(x, y) for curve in curves for x, y in curve.points if math.isfinite(y)]
    ticks_x, ticks_y = _ticks(*_range([0.0, *(x for x, _ in known)]), 6), _ticks(*_range(y for _, y in known), 5)
    across = lambda x: _LEFT + (x - ticks_x[0]) / (ticks_x[-1] - ticks_x[0]) * (_WIDTH - _LEFT - _RIGHT)  # noqa: E731
    up = lambda y: _HEIGHT - _BOTTOM - (y - ticks_y[0]) / (ticks_y[-1] - ticks_y[0]) * (_HEIGHT - _BOTTOM - _TOP)  # noqa: E731
    drawn = [_level(up(y), number(y)) for y in ticks_y]
    drawn += [f'<text x="{across(x):.1f}" y="{_HEIGHT - _BOTTOM + 15}" text-anchor=middle>{number(x)}</text>' for x in ticks_x]
    drawn.append(f'<text x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 5}" text-anchor=middle>{safe(x_label)}</text>')
    middle = (_HEIGHT - _BOTTOM + _TOP) / 2
    drawn.append(f'<text transform="translate(12 {middle}) rotate(-90)" text-anchor=middle>{safe(unit)}</text>')
    drawn += [_path(curve, across, up) for curve in curves]
    svg = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width={_WIDTH} role=img aria-label="{safe(title)}">{"".join(drawn)}</svg>'
    return f"<figure><h3>{safe(title)}</h3>{svg}<div class=legend>{''.join(map(_legend, curves))}</div></figure>"


def _level(y: float, text: str) -> str:
    line = f'<line class=grid x1={_LEFT} x2={_WIDTH - _RIGHT} y1="{y:.1f}" y2="{y:.1f}"/>'
    return f'{line}<text x={_LEFT - 6} y="{y + 4:.1f}" text-anchor=end>{text}</text>'


def _path(curve: Curve, across, up) -> str:
    stride, runs, run = max(1, -(-len(curve.points) // _POINTS)), [], []
    kept = curve.points[::stride] + ([curve.points[-1]] if (len(curve.points) - 1) % stride else [])
    for x, y in [*kept, (0, math.nan)]:
        if math.isfinite(y):
            run.append(f"{across(x):.1f},{up(y):.1f}")
        elif run:
            runs, run = [*runs, run], []
    look = _look(curve)
    dots = [f'<circle cx="{x}" cy="{y}" r=2.6 {_fill(curve)}/>' for x, y in (one[0].split(",") for one in runs if len(one) == 1)]
    return "".join(f'<polyline class=curve {look} points="{" ".join(one)}"/>' for one in runs if len(one) > 1) + "".join(dots)


def _look(curve: Curve) -> str:
    dashes = ' stroke-dasharray="5 4"' if curve.dashed else ""
    return f'style="stroke:var(--c{curve.colour % COLOURS})"{dashes}'


def _fill(curve: Curve) -> str:
    return f'style="fill:var(--c{curve.colour % COLOURS})"'


def _legend(curve: Curve) -> str:
    line = f'<svg width=26 height=8 viewBox="0 0 26 8"><line x1=0 x2=26 y1=4 y2=4 stroke-width=2.5 {_look(curve)}/></svg>'
    return f"<span>{line}{safe(curve.name)}</span>"


def _range(values) -> tuple[float, float]:
    values = list(values)
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - max(abs(low), 1) / 2, high + max(abs(high), 1) / 2)


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers, evenly apart, from below `low` to above `high`: about `count` of them."""
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, max(last, first + 1) + 1)]


def number(value: float) -> str:
    """A number in few characters: 0.25, 1,200, 2.5e-05."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.3g}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def shares(title: str, layers: list[str], rows: list[list[float]]) -> str:
    """A figure of each expert's share in each layer, as cells, the darker the larger; "" without any."""
    if not rows or not rows[0]:
        return ""
    even = 1 / len(rows[0])
    head = "".join(f"<th>{expert}" for expert in range(len(rows[0])))
    cells = ("".join(_cell(share, even) for share in row) for row in rows)
    lines = "".join(f"<tr><th>{safe(layer)}{row}" for layer, row in zip(layers, cells, strict=True))
    grid = f"<div class=scroll><table class=cells><tr><th>expert{head}{lines}</table></div>"
    return f"<figure><h3>{safe(title)}</h3>{grid}</figure>"


def _cell(share: float, even: float) -> str:
    """In percent, tinted by how many times an even share it is."""
    strength = max(0, min(100, round(45 * share / even)))
    return f'<td style="background:color-mix(in srgb, var(--c0) {strength}%, var(--card))">{100 * share:.0f} %'
