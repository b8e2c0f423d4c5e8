"""Audio: log-mel spectrograms, cut into patches of time x mel bins (IMP, section 3.1).

Shapes: B batch, L tokens of an example, P raw values of a patch (frames * mel bins), D width, N samples, C channels.
"""

import math
from functools import lru_cache

import numpy as np
import torch
from torch import nn

from imp_ds.errors import UserError
from imp_ds.modalities.drop_token import drop_tokens
from imp_ds.modalities.log_mel import LogMel
from imp_ds.modalities.positions import FactoredPositions

INPUT_NAMES = ("input_features", "feature_positions")
CROPS = ("start", "center", "random")
_MOST_CHANNELS = 32


class AudioEmbedding(nn.Module):
    """Spectrogram patches and their coordinates to tokens.

    forward takes `input_features`, [B, L, P] float, and `feature_positions`, [B, L, 2] (time, frequency) in [0, 1);
    it returns tokens [B, L, D] and None: no token is padding.
    """

    def __init__(self, config):
        super().__init__()
        frames, bins = config.audio_patch
        self.patch = nn.Linear(frames * bins, config.hidden_size)
        buckets = [largest // patch for largest, patch in zip(config.audio_max, config.audio_patch)]
        self.positions = FactoredPositions(buckets, config.hidden_size, config.layer_norm_eps)

    def forward(self, input_features: torch.Tensor, feature_positions: torch.Tensor):
        values = input_features.to(self.patch.weight.dtype)
        return self.patch(values) + self.positions(feature_positions).to(values.dtype), None


def preprocess(
    sounds: list[np.ndarray],
    sampling_rates: list[int],
    log_mel: LogMel,
    seconds: float,
    patch: tuple[int, int],
    *,
    mean: float = 0.0,
    std: float = 1.0,
    crop: str = "start",
    drop_rate: float = 0.0,
    rng: np.random.Generator | None = None,
) -> dict[str, np.ndarray]:
    """Sounds of any length and rate to the model's inputs: `input_features` float32 [B, L, P], `feature_positions` [B, L, 2].

    Channels are averaged, the rate becomes that of `log_mel`, the length `seconds`. The number of frames is seconds * rate / hop,
    rounded up to whole patches; what the last frames lack is silence.

    Args:
        sounds: samples [N], [N, C] or [C, N]; floats in [-1, 1] or integers over their type's range.
        patch: spectrogram frames and mel bins of a patch.
        mean, std: the log-mel values become (value - mean) / std; fixed numbers, not statistics of the sound.
        crop: where a longer sound is cut, and where a shorter one lies in the silence: "start", "center" or "random".
        drop_rate: share of the tokens dropped.

    Raises:
        UserError: samples, rates or sizes that cannot be used.
    """
    if log_mel.mel_bins % patch[1]:
        raise UserError("the patch does not divide the mel bins", got=f"{log_mel.mel_bins} bins in patches of {patch[1]}")
    if crop not in CROPS or (crop == "random" and rng is None):
        raise UserError("unknown crop of a sound", got=f"crop={crop!r}, rng={rng}", allowed=f'{CROPS}; "random" needs rng')
    length = round(seconds * log_mel.sampling_rate)
    frames = patch[0] * math.ceil(math.ceil(length / log_mel.hop_length) / patch[0])
    samples_BN = np.zeros((len(sounds), max(length, log_mel.samples_for(frames))), np.float32)
    for row_N, sound, rate in zip(samples_BN, sounds, sampling_rates, strict=True):
        _place(to_mono(sound), rate, log_mel.sampling_rate, row_N[:length], crop, rng)
    mel_BFM = log_mel(torch.from_numpy(samples_BN[:, : log_mel.samples_for(frames)]))
    mel_BFM = mel_BFM.sub_(mean).div_(std).numpy()
    grid = (frames // patch[0], log_mel.mel_bins // patch[1])
    pairs = [drop_tokens(patchify(mel_FM, grid, patch), grid, drop_rate, rng) for mel_FM in mel_BFM]
    return {name: np.stack(parts) for name, parts in zip(INPUT_NAMES, zip(*pairs))}


def to_mono(sound: np.ndarray) -> np.ndarray:
    """Samples of any shape and type to one channel, float32 [N]. The shorter axis of a 2-D array is the channels."""
    sound = np.asarray(sound)
    channels = min(sound.shape) if sound.ndim == 2 else 1
    if sound.ndim not in (1, 2) or not sound.size or channels > _MOST_CHANNELS or sound.dtype.kind not in "iuf":
        raise UserError(
            "this is no sound",
            got=f"an array of shape {sound.shape} and type {sound.dtype}",
            allowed=f"numbers of shape [samples], [samples, channels] or [channels, samples], up to {_MOST_CHANNELS} channels",
        )
    if sound.dtype.kind == "f":
        samples = sound.astype(np.float32, copy=False)
    else:
        span = float(np.iinfo(sound.dtype).max) + 1.0
        samples = sound.astype(np.float32) / span if sound.dtype.kind == "i" else sound.astype(np.float32) / (span / 2) - 1.0
    if sound.ndim == 2:
        samples = samples.mean(int(np.argmin(sound.shape)))
    if not np.isfinite(samples).all():
        raise UserError("a sound has samples that are not finite", got=f"{np.sum(~np.isfinite(samples))} of {samples.size}")
    return samples


def resample(samples_N: np.ndarray, rate: int, target: int) -> np.ndarray:
    """Band-limited (polyphase) change of the sampling rate."""
    if rate == target:
        return samples_N
    from scipy.signal import resample_poly  # imported here: a third of a second, and most corpora never need it

    divisor = math.gcd(rate, target)
    up, down = target // divisor, rate // divisor
    return resample_poly(samples_N, up, down, window=_lowpass(max(up, down))).astype(np.float32, copy=False)


@lru_cache(maxsize=16)
def _lowpass(factor: int) -> np.ndarray:
    """The filter that resample_poly would design anew for every sound: a Kaiser window over ten periods on each side."""
    from scipy.signal import firwin

    return firwin(20 * factor + 1, 1.0 / factor, window=("kaiser", 5.0)).astype(np.float32)


def patchify(mel_FM: np.ndarray, grid: tuple[int, int], patch: tuple[int, int]) -> np.ndarray:
    """[F, M] to [L, P]: patches in the order time, frequency; values in the order frame, bin."""
    (steps, bands), (frames, bins) = grid, patch
    return mel_FM.reshape(steps, frames, bands, bins).transpose(0, 2, 1, 3).reshape(steps * bands, frames * bins)


def _place(samples_N: np.ndarray, rate: int, target: int, row_N: np.ndarray, crop: str, rng: np.random.Generator | None):
    """Write a sound into its row of silence: resampled, and cut or shifted as `crop` says."""
    if isinstance(rate, bool) or not isinstance(rate, (int, np.integer)) or rate < 1:
        raise UserError("a sampling rate must be a whole number of samples per second", got=repr(rate), allowed="such as 16000")
    wanted = math.ceil(len(row_N) * rate / target)
    # A long sound is cut before it is resampled: the rest would be thrown away.
    start = _offset(max(len(samples_N) - wanted, 0), crop, rng)
    samples_N = resample(samples_N[start : start + wanted], int(rate), target)[: len(row_N)]
    start = _offset(len(row_N) - len(samples_N), crop, rng)
    row_N[start : start + len(samples_N)] = samples_N


def _offset(slack: int, crop: str, rng: np.random.Generator | None) -> int:
    if crop == "random":
        return int(rng.integers(slack + 1))
    return slack // 2 if crop == "center" else 0
