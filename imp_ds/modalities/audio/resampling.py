"""Change of a recording's sampling rate by a rational factor, band-limited, as matrix products.

The new sample k is the sum of the old ones around k * down / up, weighted by the taps of one phase of a low-pass filter. After
`up` new samples, `down` old ones later, the same weights come again: so a run of neighbouring new samples is one product of a
matrix, whose rows are stretches of the recording, with another that holds the weights. That is what `scipy.signal.resample_poly`
computes, to rounding, in a seventh of the time (benchmarks/results/decoding.md).

Shapes: N old samples, M new samples, R periods, K old samples that a run needs, G new samples of a run.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import as_strided

_RUN = 32  # new samples of one product: more would multiply more zeros, fewer would start more products
_ZEROS = 10  # zero crossings of the filter on each side
_BETA = 5.0  # of its Kaiser window; both are resample_poly's


def resample(samples_N: np.ndarray, rate: int, target: int) -> np.ndarray:
    """A recording at `target` instead of `rate` samples per second: float32 [M], M = ceil(N * target / rate)."""
    if rate == target or not len(samples_N):
        return samples_N
    divisor = math.gcd(rate, target)
    up, down = target // divisor, rate // divisor
    period_new, period_old, before, runs = _runs(up, down)
    count = -(-len(samples_N) * up // down)
    periods = -(-count // period_new)
    longest = max(start + len(weights_KG) for _, start, weights_KG in runs)
    padded = np.zeros(before + max(len(samples_N), (periods - 1) * period_old + longest), np.float32)
    padded[before : before + len(samples_N)] = samples_N
    resampled = np.empty((periods, period_new), np.float32)
    step = padded.strides[0]
    for first, start, weights_KG in runs:
        rows_RK = as_strided(padded[start:], (periods, len(weights_KG)), (period_old * step, step), writeable=False)
        resampled[:, first : first + weights_KG.shape[1]] = rows_RK @ weights_KG
    return resampled.reshape(-1)[:count]


@lru_cache(maxsize=128)  # a change of speed draws from about a hundred factors
def _runs(up: int, down: int) -> tuple[int, int, int, list[tuple[int, int, np.ndarray]]]:
    """New and old samples of a period, zeros before the first old sample, and the runs of a period: number of its first new
    sample, its first old sample (counted with those zeros), weights [K, G]."""
    half = _ZEROS * max(up, down)
    taps = _lowpass(half, max(up, down)) * up
    # rows may not overlap by more than a period, or BLAS does not take them: several periods of the filter make one of ours
    needed = 2 * half // up + _RUN * down // up + 2
    repeat = -(-needed // down)
    before, runs = half // up, []
    for first in range(0, repeat * up, _RUN):
        new_G = np.arange(first, min(first + _RUN, repeat * up))
        # old sample o adds to new sample n with tap half + n * down - o * up
        old_K = np.arange(-((half - new_G[0] * down) // up), (half + new_G[-1] * down) // up + 1)
        tap_KG = half + new_G[None, :] * down - old_K[:, None] * up
        inside = (tap_KG >= 0) & (tap_KG <= 2 * half)
        weights_KG = np.where(inside, taps[np.clip(tap_KG, 0, 2 * half)], 0.0).astype(np.float32)
        runs.append((first, int(old_K[0]) + before, weights_KG))
    return repeat * up, repeat * down, before, runs


def _lowpass(half: int, factor: int) -> np.ndarray:
    """The filter of resample_poly: a Kaiser-windowed sinc of 2 * half + 1 taps that passes 1 / factor of the spectrum."""
    place = np.arange(-half, half + 1)
    taps = np.sinc(place / factor) * np.kaiser(2 * half + 1, _BETA)
    return taps / taps.sum()
