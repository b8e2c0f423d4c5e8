"""The 1,797 handwritten digits of scikit-learn (UCI "Optical Recognition of Handwritten Digits", test part), as PNG.

Splits are by handwritten image and stratified by class; the videos draw from the same split's images.
Shapes: N images, H height, W width.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from imp_ds.data.digits.captions import captions

SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
SIDE = 32  # pixels
_INK_MAX = 16  # the digits come as 8x8 counts of ink in 0..16


class Handwriting:
    """The handwritten digits and their splits.

    Attributes: `ink_NHW` uint8 [1797, 8, 8] in 0..255; `labels_N` int [1797]; `splits` split name -> indices into both.
    """

    def __init__(self, seed: int, scale: float):
        from sklearn.datasets import load_digits  # scikit-learn takes a second to import, and only building needs it

        data = load_digits()
        self.ink_NHW = np.rint(data.images * (255 / _INK_MAX)).astype(np.uint8)
        self.labels_N = data.target
        self.splits = _split(self.labels_N, np.random.default_rng([seed, 1]), scale)

    def of(self, split: str, digit: int) -> np.ndarray:
        """Indices of the split's images of a digit."""
        indices = self.splits[split]
        return indices[self.labels_N[indices] == digit]

    def draw(self, index: int, side: int) -> np.ndarray:
        """The image enlarged smoothly to side x side: uint8 [side, side], ink is bright."""
        return np.asarray(Image.fromarray(self.ink_NHW[index]).resize((side, side), Image.Resampling.BICUBIC))


def _split(labels_N: np.ndarray, rng: np.random.Generator, scale: float) -> dict[str, np.ndarray]:
    """Shuffle each class and cut it by SHARES, at least one image for each class and split."""
    parts = {split: [] for split in SHARES}
    for digit in np.unique(labels_N):
        members = rng.permutation(np.flatnonzero(labels_N == digit))
        members = members[: max(len(SHARES), round(len(members) * scale))]
        validation, test = (max(1, round(len(members) * SHARES[split])) for split in ("validation", "test"))
        for split, part in zip(("validation", "test", "train"), np.split(members, [validation, validation + test])):
            parts[split].append(part)
    return {split: rng.permutation(np.concatenate(members)) for split, members in parts.items()}


def write(folder: Path, handwriting: Handwriting, split: str, rng: np.random.Generator) -> Iterator[dict]:
    """Write the split's images as PNG into `folder`; yields a metadata row after each.

    Row: file_name, label (0 to 9), drawing (index in scikit-learn's set), captions.
    (A column named "image" would take the place of the picture when `datasets` loads the folder.)
    """
    for number, index in enumerate(handwriting.splits[split]):
        name, label = f"{number:05d}.png", int(handwriting.labels_N[index])
        Image.fromarray(handwriting.draw(index, SIDE)).save(folder / name, optimize=False)
        yield {"file_name": name, "label": label, "drawing": int(index), "captions": captions("images", label, rng)}
