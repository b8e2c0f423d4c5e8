"""Speed of colour jitter against Pillow's ImageEnhance on the same picture, in the same run.

    python benchmarks/colour_jitter.py [--out benchmarks/results/colour_jitter.md]

Both change brightness, contrast and saturation of uint8 pixels [H, W, 3] by the same factors, from an array to an array. Pillow
rounds and clips after each of the three, ours once, so results differ; the largest difference is printed, too, of a picture whose
colours reach neither end. Calls alternate, so that a busy machine slows both alike; the median is reported. Takes 5 seconds.
"""

import argparse
import datetime
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageEnhance

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from imp_ds.modalities.vision.augmentation import mirror, recolour  # noqa: E402

MOST, CALLS = 0.3, 300
SIZES = (64, 224, 512)


class Given:
    """A generator that draws what it was given."""

    def __init__(self, values):
        self.values = values

    def uniform(self, low: float, high: float, count: int) -> np.ndarray:
        return self.values

    def random(self) -> float:
        return 0.0


def pillow(picture_HWC: np.ndarray, factors) -> np.ndarray:
    image = Image.fromarray(picture_HWC)
    for enhance, factor in zip((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), factors):
        image = enhance(image).enhance(factor)
    return np.asarray(image)


def ours(picture_HWC: np.ndarray, factors) -> np.ndarray:
    return recolour(picture_HWC[None], MOST, Given(factors))[0]


def medians(picture_HWC: np.ndarray) -> list[float]:
    """Milliseconds of ours and of Pillow."""
    seconds = {ours: [], pillow: []}
    for factors in np.random.default_rng(1).uniform(1 - MOST, 1 + MOST, (CALLS, 3)):
        for change, found in seconds.items():
            start = time.perf_counter()
            change(picture_HWC, factors)
            found.append(time.perf_counter() - start)
    return [1000 * statistics.median(found) for found in seconds.values()]


def largest_difference() -> int:
    picture = np.random.default_rng(2).integers(70, 150, (224, 224, 3), dtype=np.uint8)
    changes = np.random.default_rng(3).uniform(1 - MOST, 1 + MOST, (100, 3))
    return max(int(np.abs(ours(picture, change).astype(int) - pillow(picture, change)).max()) for change in changes)


def table() -> list[str]:
    lines = ["| picture | ours, ms | Pillow, ms | Pillow / ours |", "| --- | ---: | ---: | ---: |"]
    for size in SIZES:
        picture = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
        for name, shown in (("", picture), (", mirrored", mirror(picture[None], Given(None))[0])):
            mine, theirs = medians(shown)
            lines.append(f"| {size} x {size}{name} | {mine:.2f} | {theirs:.2f} | {theirs / mine:.1f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    facts = (
        f"`python benchmarks/colour_jitter.py`, {datetime.date.today()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, numpy {np.__version__}, Pillow {PIL.__version__}. Median of {CALLS} calls."
    )
    difference = f"Largest difference from Pillow, which rounds three times, without clipping: {largest_difference()} levels."
    page = "\n".join(["# Colour jitter", "", facts, "", *table(), "", difference, ""])
    print(page)
    if options.out:
        options.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
