"""What an evaluator measures: a value with its unit, whether higher or lower is better, and where it is shown; written for
people.

Tables, the model card, TensorBoard, the console's line and the picture of the results take all of it from here: no metric is
known to them by name.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from imp_ds.errors import UserError

# how the values of a unit are written; those of any other have it behind them, as "3.25 ms"
_WRITTEN = {
    "share": lambda value: f"{100 * value:.1f} %",
    "count": lambda value: f"{value:.0f}",
    "nats": lambda value: f"{value:.3f}",
    "": lambda value: f"{value:.2f}",
}

AVERAGED = "ema/"  # begins the name of what was measured of the averaged weights (train.ema)
_BETTER = ("higher", "lower", None)


class Panel(NamedTuple):
    """A panel of the picture of the results: its title, what its axis shows, what the metrics in it are called."""

    title: str
    axis: str
    metric: str


ACCURACY = Panel("Accuracy by task", "accuracy", "top 1")  # has the accuracy on training batches too
RETRIEVAL = Panel("Retrieval by direction", "R@1", "R@1")


class Shown(NamedTuple):
    """Where a main metric is seen at a glance.

    heading: in the console's line, before all of its kind: "zero-shot".
    label: there, before the value: "loss ".
    panel: of the picture; None: not drawn.
    curve: behind the name of its curve: ", head".
    dashed: its curve.
    """

    heading: str
    label: str = ""
    panel: Panel | None = None
    curve: str = ""
    dashed: bool = False


class Metric(NamedTuple):
    """One value that was measured.

    name: flat, KIND/OF/.../MEASURE, as "retrieval/image/image_to_text/R@1"; unique in a run.
    unit: "share" (from 0 to 1, written in percent), "count", "nats", "" (a number without a unit), or another one, such as "ms".
    better: higher or lower; None: neither, as of a count. What has a direction is a score.
    shown: None: in tables and curves alone.
    """

    name: str
    value: float
    unit: str = ""
    better: Literal["higher", "lower"] | None = None
    shown: Shown | None = None

    @property
    def of(self) -> str:
        """What it is measured of: the last part of the name but one."""
        return self.name.split("/")[-2:][0]

    def written(self) -> str:
        """The value as people read it: 98.3 %, 0.412 nats of a loss, 3 samples, 3.25 ms."""
        return _WRITTEN[self.unit](self.value) if self.unit in _WRITTEN else f"{self.value:.4g} {self.unit}"

    def facts(self) -> dict:
        """All but name and value, for JSON."""
        return {"unit": self.unit, "better": self.better, "shown": None if self.shown is None else self.shown._asdict()}


def checked(found: object, evaluator: str) -> Metric:
    """What an evaluator has yielded, its value as a float. Raises UserError for what is no Metric, and names whose it is."""
    what = f"the evaluator {evaluator} yields something else than metrics"
    if not isinstance(found, Metric):
        raise UserError(what, got=repr(found), allowed='Metric("KIND/OF/MEASURE", value, unit, better)', shared=True)
    if found.better not in _BETTER:
        raise UserError(what, got=f"{found.name}: better = {found.better!r}", allowed='"higher", "lower", None', shared=True)
    return found._replace(value=float(found.value))


def read_metric(name: str, value: float, facts: dict) -> Metric:
    """The metric of these `Metric.facts`, also as JSON has them. Raises TypeError, ValueError or LookupError for others."""
    shown = facts["shown"]
    if not isinstance(facts["unit"], str) or facts["better"] not in _BETTER:
        raise TypeError(f"unit and direction are no texts: {facts}")
    if shown is not None:
        shown = Shown(**{**shown, "panel": None if shown["panel"] is None else Panel(*shown["panel"])})
    return Metric(name, value, facts["unit"], facts["better"], shown)


def of_average(metric: Metric) -> Metric:
    """A metric of the averaged weights, beside the same of the weights: under a heading of its own in the console's line, and not
    in the picture, whose curves have the names of what is measured."""
    shown = metric.shown and metric.shown._replace(heading=f"ema {metric.shown.heading}", panel=None)
    return metric._replace(name=AVERAGED + metric.name, shown=shown)


def scores_of(results: list[Metric], averaged: bool) -> list[Metric]:
    """Of a run's results those of its weights, or of their average, by the names that they have where there is no other."""
    average = {metric.name.removeprefix(AVERAGED): metric for metric in results if metric.name.startswith(AVERAGED)}
    own = [metric for metric in results if not metric.name.startswith(AVERAGED)]
    if not averaged:
        return own
    return [metric._replace(value=average.get(metric.name, metric).value) for metric in own]


def by_name(metrics: Iterable[Metric]) -> dict[str, float]:
    """name -> value."""
    return {metric.name: metric.value for metric in metrics}


def by_kind(metrics: Iterable[Metric]) -> list[Metric]:
    """Those of a kind together, scores first; else in the order in which they came."""
    metrics = list(metrics)
    kinds = list(dict.fromkeys(_kind(metric) for metric in metrics))
    return sorted(metrics, key=lambda metric: (metric.better is None, kinds.index(_kind(metric))))


def in_one_line(metrics: Iterable[Metric]) -> str:
    """The main metrics for the console, by their headings; "" where there are none of them.

    "retrieval R@1 image_to_text 12.5 %, text_to_image 10.0 %; heads animal loss 1.250 87.5 %".
    """
    found: dict[str, dict[str, list[str]]] = {}
    for metric in by_kind(metric for metric in metrics if metric.shown is not None):
        of = found.setdefault(metric.shown.heading, {}).setdefault(metric.of, [])
        of.append(metric.shown.label + metric.written())
    lines = (", ".join(f"{name} {' '.join(written)}" for name, written in of.items()) for of in found.values())
    return "; ".join(f"{heading} {line}" for heading, line in zip(found, lines))


def _kind(metric: Metric) -> str:
    return metric.name.partition("/")[0]
