"""What training changes at random in a spectrogram. All draws come from the sample's own generator.

Shapes: F frames of a spectrogram, M mel bins.
"""

from typing import NamedTuple

import numpy as np

from imp_ds.modalities.draws import below


class SpecMasks(NamedTuple):
    """How many bands of time, and as many of frequency, are masked; the longest and widest, as shares of the whole."""

    count: int
    time: float
    frequency: float


def mask_spectrogram(mel_FM: np.ndarray, masks: SpecMasks, rng: np.random.Generator) -> None:
    """Set random bands of time and of frequency to zero, the mean of a standardised spectrogram, in its place (SpecAugment,
    arXiv 1904.08779, section 2: lengths uniform from none to the longest, places uniform)."""
    for _ in range(masks.count):
        mel_FM[_band(len(mel_FM), masks.time, rng)] = 0.0
        mel_FM[:, _band(mel_FM.shape[1], masks.frequency, rng)] = 0.0


def _band(size: int, share: float, rng: np.random.Generator) -> slice:
    length = below(int(share * size) + 1, rng)
    start = below(size - length + 1, rng)
    return slice(start, start + length)
