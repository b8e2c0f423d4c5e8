"""What a run's model took from elsewhere when it started."""

from pathlib import Path
from typing import NamedTuple


class InitialWeights(NamedTuple):
    """lines: what the console shows; sources: of each parameter that was copied as it lies in a file, that file and its key
    there; report: the whole of it, for a file of the run's folder; "": there is no more to say than the lines."""

    lines: list[str]
    sources: dict[str, tuple[Path, str]]
    report: str = ""
