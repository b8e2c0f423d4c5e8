"""What a tracker is: where curves, pictures and texts of a run go while it trains, to be looked at.

Shapes: N rows, C width of a common space, H height, W width.
"""

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import torch

from imp_ds.json_files import read_json
from imp_ds.written_files import write_json

IDS = "trackers.json"  # in a run's folder: tracker -> what it calls the run, which goes on under that name


class Tracker(ABC):
    """Rank 0 makes one when the run starts or goes on. What a tracker has no place for, it leaves out.

    Tags are flat names, "train/TASK/loss"; steps count those done.
    """

    @abstractmethod
    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Points of curves, by tag."""

    def text(self, tag: str, markdown: str, step: int = 0) -> None:
        pass

    def picture(self, tag: str, picture_HW3: np.ndarray, step: int = 0) -> None:
        """uint8."""

    def picture_file(self, tag: str, path: Path, step: int) -> None:
        from PIL import Image

        with Image.open(path) as image:
            self.picture(tag, np.asarray(image.convert("RGB")), step)

    def audio(self, tag: str, samples_N: np.ndarray, rate: int, step: int = 0) -> None:
        """Samples in [-1, 1], `rate` a second."""

    def expert_charts(self, tags: dict[str, list[str]]) -> None:
        """Curves that are read together: chart title -> scalar tags."""

    def embedding(self, tag: str, vectors_NC: torch.Tensor, labels: list[str] | None, images_N3HW, step: int) -> None:
        """Points of a projector, with labels and thumbnails in [0, 1] where given."""

    def hyperparameters(self, parameters: dict, results: dict[str, float], step: int) -> None:
        """The run in one row, at its end: what distinguishes it, and its final scores."""
        self.scalars(step, results)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        """The end, on every way out."""


def run_id(folder: Path, tracker: str, fresh: str) -> str:
    """What a tracker calls the run in `folder`: as before where it has one there, else `fresh`, which is kept. Raises UserError
    for a damaged file."""
    path = folder / IDS
    known = read_json(path, dict, "delete the file: the run gets a new page in its trackers") if path.exists() else {}
    if not isinstance(known.get(tracker), str):
        known[tracker] = fresh
        write_json(path, known)
    return known[tracker]
