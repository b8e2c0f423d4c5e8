"""A measure of a comparison, and how its seeds are summed up."""

import statistics
from typing import NamedTuple

MORE, LESS = "\u2191", "\u2193"


class Measure(NamedTuple):
    """A column of the table and a panel of the picture. `key` is that of `job_values`; `scale` times the value is shown, with
    `digits` after the point. `better`: MORE or LESS; "": neither."""

    key: str
    title: str
    unit: str = ""
    scale: float = 1.0
    digits: int = 1
    better: str = ""

    @property
    def heading(self) -> str:
        """Title and unit, and which way is better."""
        return self.title + (f", {self.unit}" if self.unit else "") + (f" {self.better}" if self.better else "")


class Spread(NamedTuple):
    """Mean and standard deviation over the seeds (of the sample: n - 1 divides); no deviation for one seed alone."""

    mean: float
    deviation: float | None


def spread(values: list[float]) -> Spread:
    """Of one measure over the seeds."""
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def spreads(values: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, Spread]]:
    """{variant: the values of each seed} -> {variant: {name: Spread}}, of the names that all seeds have."""
    return {
        variant: {name: spread([one[name] for one in seeds]) for name in seeds[0] if all(name in one for one in seeds)}
        for variant, seeds in values.items()
    }
