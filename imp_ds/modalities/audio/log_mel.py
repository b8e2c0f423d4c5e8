"""Log-mel spectrograms of a batch of recordings by one real FFT (torch.fft).

The defaults are IMP's (arXiv 2305.06324; release `config/data.py`): frames of 2,048 samples every 1,024 at 16 kHz, 128 mel
bins from 80 to 7,600 Hz, natural logarithm. The other settings exist so that the features of published extractors (Whisper,
AST) can be expressed; tests compare with both.

Shapes: B batch, N samples, F frames, W samples of a frame, K frequency bins, M mel bins.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from imp_ds.errors import UserError

_CHOICES = {"mel_scale": ("htk", "slaney"), "mel_norm": (None, "slaney"), "triangles": ("mel", "hertz"), "log": ("ln", "log10")}
_BLOCK = 16  # mel bins of one product
# Frames transformed at a time, and powers multiplied with the filters at a time: arrays that stay in the cache, and that malloc
# hands out again instead of fetching new pages; the products need more rows than the transforms to be efficient.
_FRAMES_BYTES, _POWER_BYTES = 1 << 20, 1 << 21


@dataclass(frozen=True)
class LogMel:
    """A log-mel transform. Call it with float samples [B, N] in [-1, 1] at `sampling_rate`; it returns float32 [B, F, M].

    Args:
        sampling_rate: samples per second.
        frame_length, hop_length: samples of a frame, and from one frame to the next.
        n_fft: FFT length, at least frame_length; None means the next power of two.
        mel_bins, f_min, f_max: number of mel bins and the range they cover, in Hz.
        mel_scale: "htk" (2595 log10(1 + f/700); Kaldi's scale is the same up to a factor) or "slaney" (linear below 1 kHz).
        mel_norm: None (triangles of height 1) or "slaney" (triangles of area 1 per Hz, times 2).
        triangles: whether the triangles are straight on the "mel" or on the "hertz" axis.
        periodic_window: the Hann window's last sample is the first of the next period (True), or zero (False).
        window_power: exponent of the Hann window; 0.85 makes it Kaldi's Povey window.
        power: exponent of the magnitude; 2 is energy.
        log, floor: the logarithm, of the energy but at least `floor`.
        center: frame i is centred at sample i * hop_length, by reflection at both ends.
        preemphasis: coefficient of a first difference inside each frame; 0 is none.
        remove_offset: subtract each frame's mean first.
        precise: compute the spectrum in float64. In float32 a bin that lies 100 dB or more below the loudest of its frame
            carries the FFT's rounding error (it moves its logarithm by about 1e-3).

    Raises:
        UserError: when the settings contradict each other.
    """

    sampling_rate: int = 16000
    frame_length: int = 2048
    hop_length: int = 1024
    n_fft: int | None = None
    mel_bins: int = 128
    f_min: float = 80.0
    f_max: float = 7600.0
    mel_scale: str = "htk"
    mel_norm: str | None = None
    triangles: str = "mel"
    periodic_window: bool = True
    window_power: float = 1.0
    power: float = 2.0
    log: str = "ln"
    floor: float = 1e-6
    center: bool = False
    preemphasis: float = 0.0
    remove_offset: bool = False
    precise: bool = False

    def __post_init__(self):
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"unknown {name} of a log-mel spectrogram", got=getattr(self, name), allowed=allowed)
        sizes = self.sampling_rate, self.frame_length, self.hop_length, self.mel_bins
        if min(sizes) < 1 or min(self.floor, self.window_power) <= 0:
            raise UserError("a size of the log-mel spectrogram is not positive", got=self)
        if not 0 <= self.f_min < self.f_max <= self.sampling_rate / 2:
            raise UserError("the mel bins lie outside the spectrum", got=f"{self.f_min} to {self.f_max} Hz",
                            allowed=f"0 <= f_min < f_max <= {self.sampling_rate / 2:g} Hz, half the sampling rate")  # fmt: skip
        if self.fft_length < self.frame_length:
            raise UserError("n_fft is shorter than a frame", got=self.n_fft, allowed=f"at least {self.frame_length}, or None")

    @property
    def fft_length(self) -> int:
        return self.n_fft or 1 << (self.frame_length - 1).bit_length()

    def samples_for(self, frames: int) -> int:
        """How many samples give exactly this many frames."""
        return (frames - 1) * self.hop_length + (0 if self.center else self.frame_length)

    @cached_property
    def window_W(self) -> torch.Tensor:
        window_W = torch.hann_window(self.frame_length, periodic=self.periodic_window, dtype=torch.float64)
        return window_W.pow(self.window_power).to(torch.float64 if self.precise else torch.float32)

    @cached_property
    def filter_blocks(self) -> list[tuple[int, int, torch.Tensor]]:
        """The filters of `_BLOCK` neighbouring mel bins at a time, each with the range of frequency bins that they touch:
        a triangle covers few bins, so the products skip most of the zeros."""
        filters_KM, blocks = mel_filters(self), []
        for first in range(0, self.mel_bins, _BLOCK):
            block = filters_KM[:, first : first + _BLOCK]
            touched = np.flatnonzero(block.any(1))
            low, high = (touched[0], touched[-1] + 1) if len(touched) else (0, 1)
            blocks.append((int(low), int(high), torch.from_numpy(block[low:high]).float().contiguous()))
        return blocks

    @property
    def bins(self) -> int:
        """How many frequency bins, from the lowest, are needed: a filter touches none above."""
        return max(high for _, high, _ in self.filter_blocks)

    def __call__(self, samples_BN: torch.Tensor) -> torch.Tensor:
        if self.center:
            side = self.frame_length // 2
            samples_BN = torch.nn.functional.pad(samples_BN[:, None], (side, side), mode="reflect")[:, 0]
        batch, samples = samples_BN.shape
        assert samples >= self.frame_length, "fewer samples than one frame"
        mel_BFM = torch.empty(batch, 1 + (samples - self.frame_length) // self.hop_length, self.mel_bins)
        with torch.inference_mode():
            for rows, frames in _pieces(*mel_BFM.shape[:2], _POWER_BYTES // (4 * self.bins)):
                stop = (frames.stop - 1) * self.hop_length + self.frame_length
                power_BFK = self._power(samples_BN[rows, frames.start * self.hop_length : stop])
                products = [power_BFK[..., low:high] @ block for low, high, block in self.filter_blocks]
                mel_BFM[rows, frames] = torch.cat(products, -1)
        values_BFM = mel_BFM.clamp_(min=self.floor).numpy()  # numpy's logarithm takes half the time of torch's
        (np.log if self.log == "ln" else np.log10)(values_BFM, out=values_BFM)
        return mel_BFM

    def _power(self, samples_BN: torch.Tensor) -> torch.Tensor:
        """The spectrum [B, F, `bins`] of all windowed frames of the samples: magnitudes to the `power`.

        With preemphasis p, sample t of a frame is x[t] - p x[t-1], the same in every frame but for its first sample, where
        the Hann window is zero; so it is computed once for all frames. A mean m in the frame adds (1 - p) m to each.
        """
        samples_BN = samples_BN.to(self.window_W.dtype)
        frames_BFW = samples_BN.unfold(1, self.frame_length, self.hop_length)
        if self.remove_offset:
            offset_BF1 = frames_BFW.mean(-1, keepdim=True).mul_(1.0 - self.preemphasis)
        if self.preemphasis:
            sharp_BN = torch.zeros_like(samples_BN)
            torch.sub(samples_BN[:, 1:], samples_BN[:, :-1], alpha=self.preemphasis, out=sharp_BN[:, 1:])
            frames_BFW = sharp_BN.unfold(1, self.frame_length, self.hop_length)
        batch, count, _ = frames_BFW.shape
        parts_BFK2 = torch.empty(batch, count, self.bins, 2)
        pieces = _pieces(batch, count, _FRAMES_BYTES // (self.fft_length * samples_BN.element_size()))
        # One padded buffer for all pieces: its tail stays zero, and memory need not be fetched anew for each.
        buffer_BFW = samples_BN.new_zeros(*parts_BFK2[pieces[0]].shape[:2], self.fft_length)
        for piece in pieces:
            waveform_BFW, spectrum_BFK2 = frames_BFW[piece], parts_BFK2[piece]
            padded_BFW = buffer_BFW[: waveform_BFW.shape[0], : waveform_BFW.shape[1]]
            inside_BFW = padded_BFW[..., : self.frame_length]
            if self.remove_offset:
                waveform_BFW = torch.sub(waveform_BFW, offset_BF1[piece], out=inside_BFW)
            torch.mul(waveform_BFW, self.window_W, out=inside_BFW)
            spectrum_BFK2.copy_(torch.view_as_real(torch.fft.rfft(padded_BFW)[..., : self.bins]))
        parts_BFK2.square_()  # in float32: half the memory to move, and nothing cancels in what follows
        power_BFK = parts_BFK2[..., 0] + parts_BFK2[..., 1]
        return power_BFK if self.power == 2.0 else power_BFK.pow_(self.power / 2)


def _pieces(batch: int, count: int, limit: int) -> list[tuple[slice, slice]]:
    """Slices of rows and frames that cover [batch, count], each of at most `limit` frames in all, but at least one."""
    limit = max(1, limit)
    rows, frames = max(1, limit // count), min(count, limit)
    starts = ((row, frame) for row in range(0, batch, rows) for frame in range(0, count, frames))
    return [(slice(row, row + rows), slice(frame, frame + frames)) for row, frame in starts]


def mel_filters(settings: LogMel) -> np.ndarray:
    """Triangular filters, float64 [K, M]: equally spaced on the mel scale, each as wide as two steps."""
    corners = np.linspace(*_to_mel(np.array([settings.f_min, settings.f_max]), settings.mel_scale), settings.mel_bins + 2)
    corners_hz = _to_hertz(corners, settings.mel_scale)
    bins = np.arange(settings.fft_length // 2 + 1) * (settings.sampling_rate / settings.fft_length)
    if settings.triangles == "mel":
        bins = _to_mel(bins, settings.mel_scale)
    else:
        corners = corners_hz
    low, middle, high = corners[:-2], corners[1:-1], corners[2:]
    rising, falling = (bins[:, None] - low) / (middle - low), (high - bins[:, None]) / (high - middle)
    filters_KM = np.clip(np.minimum(rising, falling), 0.0, None)
    if settings.mel_norm == "slaney":
        filters_KM *= 2.0 / (corners_hz[2:] - corners_hz[:-2])
    return filters_KM


# Slaney's scale (Auditory Toolbox, 1998): 200/3 Hz per mel up to 1 kHz, then 27 mels for each factor of 6.4.
_BREAK_HZ, _HZ_PER_MEL, _MELS_PER_E = 1000.0, 200.0 / 3.0, 27.0 / np.log(6.4)


def _to_mel(hertz: np.ndarray, scale: str) -> np.ndarray:
    if scale == "htk":
        return 2595.0 * np.log10(1.0 + hertz / 700.0)
    above = np.log(np.maximum(hertz, _BREAK_HZ) / _BREAK_HZ) * _MELS_PER_E
    return np.minimum(hertz, _BREAK_HZ) / _HZ_PER_MEL + above


def _to_hertz(mels: np.ndarray, scale: str) -> np.ndarray:
    if scale == "htk":
        return 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
    at_break = _BREAK_HZ / _HZ_PER_MEL
    return np.minimum(mels, at_break) * _HZ_PER_MEL * np.exp(np.maximum(mels - at_break, 0.0) / _MELS_PER_E)
