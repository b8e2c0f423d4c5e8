"""Audio: log-mel spectrograms, cut into patches of time x mel bins (IMP, section 3.1).

Shapes: B batch, L tokens of an example, K of them that are kept, P raw values of a patch (frames * mel bins), D width, N samples,
C channels, F spectrogram frames, M mel bins.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from imp_ds.errors import UserError
from imp_ds.modalities.audio.augmentation import SpecMasks, mask_spectrogram
from imp_ds.modalities.audio.log_mel import LogMel
from imp_ds.modalities.audio.resampling import resample
from imp_ds.modalities.draws import below
from imp_ds.modalities.drop_token import kept_count, kept_tokens, write_tokens
from imp_ds.modalities.positions import FactoredPositions

INPUT_NAMES = ("input_features", "feature_positions")
CROPS = ("start", "center", "random")
_MOST_CHANNELS = 32
_LEAST_VARIANCE = np.float32(1e-7)  # as transformers has it; what is much quieter than -70 dB of full scale stays quiet


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
        values = input_features.to(self.positions.norm.weight.dtype)  # the linear layer may be quantized
        return self.patch(values) + self.positions(feature_positions).to(values.dtype), None


def preprocess(
    waveforms: list[np.ndarray],
    sampling_rates: list[int],
    log_mel: LogMel,
    seconds: float,
    patch: tuple[int, int],
    *,
    mean: float = 0.0,
    std: float = 1.0,
    do_normalize: bool = False,
    crop: str = "start",
    masks: SpecMasks | None = None,
    drop_rate: float = 0.0,
    rngs: Sequence[np.random.Generator] | None = None,
    dtype: type = np.float32,
    empty: Callable = np.empty,
) -> dict[str, np.ndarray]:
    """Sounds of any length and rate to the model's inputs: `input_features` [B, K, P], `feature_positions` float32 [B, K, 2].

    Channels are averaged, the rate becomes that of `log_mel`, the length `seconds`. The number of frames is seconds * rate / hop,
    rounded up to whole patches; what the last frames lack is silence.

    Args:
        waveforms: samples [N], [N, C] or [C, N]; floats in [-1, 1] or integers over their type's range.
        patch: spectrogram frames and mel bins of a patch.
        mean, std: the log-mel values become (value - mean) / std; fixed numbers, not statistics of the recording.
        do_normalize: bring the part of each recording that is taken to mean 0 and variance 1, so that loudness does not count
            (wav2vec 2.0, arXiv 2006.11477, section 2).
        crop: where a longer recording is cut, and where a shorter one lies in the silence: "start", "center" or "random".
        masks: bands of the spectrogram to be masked at random.
        drop_rate: share of the tokens dropped.
        rngs: one for each recording, the source of all that is random.
        dtype: of the features: float32, or float16, half as much to carry and still exact to 1 / 2048 of a value.
        empty: makes the arrays, as `numpy.empty` does; for memory of one's own.

    Raises:
        UserError: samples, rates or sizes that cannot be used.
    """
    if log_mel.mel_bins % patch[1]:
        raise UserError("the patch does not divide the mel bins", got=f"{log_mel.mel_bins} bins in patches of {patch[1]}")
    if crop not in CROPS or (crop == "random" and rngs is None):
        raise UserError("unknown crop of a recording", got=f"crop={crop!r}, rngs={rngs}", allowed=f'{CROPS}; "random" needs rngs')
    mel_BFM = spectrograms(waveforms, sampling_rates, log_mel, seconds, patch[0], crop, rngs, do_normalize)
    mel_BFM = mel_BFM.sub_(mean).div_(std).numpy()
    steps, bands = grid = mel_BFM.shape[1] // patch[0], log_mel.mel_bins // patch[1]
    shape = len(waveforms), kept_count(steps * bands, drop_rate)
    values_BKP, positions_BK2 = empty((*shape, math.prod(patch)), dtype), empty((*shape, 2), np.float32)
    for index, mel_FM in enumerate(mel_BFM):
        rng = None if rngs is None else rngs[index]
        if masks is not None:
            mask_spectrogram(mel_FM, masks, rng)
        kept = kept_tokens(steps * bands, steps * bands, drop_rate, rng)
        blocks = mel_FM.reshape(steps, patch[0], bands, patch[1]).transpose(0, 2, 1, 3)  # in the order time, frequency
        write_tokens(blocks, grid, kept, values_BKP[index], positions_BK2[index])
    return dict(zip(INPUT_NAMES, (values_BKP, positions_BK2)))


def spectrograms(
    waveforms: list[np.ndarray], sampling_rates: list[int], log_mel: LogMel, seconds: float, multiple: int, crop: str, rngs,
    do_normalize: bool = False,
) -> torch.Tensor:  # fmt: skip
    """The log-mel spectrograms of `seconds` of each recording, float32 [B, F, M]; F is rounded up to a multiple of `multiple`."""
    length = round(seconds * log_mel.sampling_rate)
    frames = multiple * math.ceil(math.ceil(length / log_mel.hop_length) / multiple)
    samples_BN = np.zeros((len(waveforms), max(length, log_mel.samples_for(frames))), np.float32)
    for index, (waveform, rate) in enumerate(zip(waveforms, sampling_rates, strict=True)):
        rng = None if rngs is None else rngs[index]
        _place(to_mono(waveform), rate, log_mel.sampling_rate, samples_BN[index, :length], crop, rng, do_normalize)
    return log_mel(torch.from_numpy(samples_BN[:, : log_mel.samples_for(frames)]))


def to_mono(waveform: np.ndarray) -> np.ndarray:
    """Samples of any shape and type to one channel, float32 [N]. The shorter axis of a 2-D array is the channels."""
    waveform = np.asarray(waveform)
    channels = min(waveform.shape) if waveform.ndim == 2 else 1
    if waveform.ndim not in (1, 2) or not waveform.size or channels > _MOST_CHANNELS or waveform.dtype.kind not in "iuf":
        raise UserError(
            "this is no waveform",
            got=f"an array of shape {waveform.shape} and type {waveform.dtype}",
            allowed=f"numbers of shape [samples], [samples, channels] or [channels, samples], up to {_MOST_CHANNELS} channels",
        )
    if waveform.dtype.kind == "f":
        samples = waveform.astype(np.float32, copy=False)
    else:
        span = float(np.iinfo(waveform.dtype).max) + 1.0
        samples = waveform.astype(np.float32)
        samples = samples / span if waveform.dtype.kind == "i" else samples / (span / 2) - 1.0
    if waveform.ndim == 2:
        samples = samples.mean(int(np.argmin(waveform.shape)))
    if not np.isfinite(samples).all():
        raise UserError("a recording has samples that are not finite", got=f"{np.sum(~np.isfinite(samples))} of {samples.size}")
    return samples


def _place(
    samples_N: np.ndarray, rate: int, target: int, row_N: np.ndarray, crop: str, rng: np.random.Generator | None,
    do_normalize: bool,
):  # fmt: skip
    """Write a recording into its row of silence: resampled, cut or shifted by `crop`, and normalised."""
    if isinstance(rate, bool) or not isinstance(rate, (int, np.integer)) or rate < 1:
        raise UserError("a sampling rate must be a whole number of samples per second", got=repr(rate), allowed="such as 16000")
    wanted = math.ceil(len(row_N) * rate / target)
    # A long recording is cut before it is resampled: the rest would be thrown away.
    start = _offset(max(len(samples_N) - wanted, 0), crop, rng)
    samples_N = resample(samples_N[start : start + wanted], int(rate), target)[: len(row_N)]
    start = _offset(len(row_N) - len(samples_N), crop, rng)
    row_N[start : start + len(samples_N)] = _normalised(samples_N) if do_normalize else samples_N


def _normalised(samples_N: np.ndarray) -> np.ndarray:
    """To mean 0 and variance 1; silence stays silence."""
    centred_N = samples_N - samples_N.mean()
    return centred_N / np.sqrt(np.mean(centred_N * centred_N) + _LEAST_VARIANCE)


def _offset(slack: int, crop: str, rng: np.random.Generator | None) -> int:
    if crop == "random":
        return below(slack + 1, rng)
    return slack // 2 if crop == "center" else 0
