"""Recordings by libsndfile, or else, and of videos, by FFmpeg, whatever their names end in: opened, then read in full or in part.

Shapes: C channels, N samples.
"""

from collections.abc import Iterator
from contextlib import ExitStack

import av
import numpy as np
import soundfile

from imp_ds.modalities.container import finds_times, opened
from imp_ds.modalities.decoding_settings import DEFAULTS, DecodingSettings
from imp_ds.modalities.media import BadSample, Media

# what libsndfile reads is tried by it first; all else, and all videos, by FFmpeg first
BY_LIBSNDFILE = {
    ".wav", ".flac", ".ogg", ".oga", ".mp3", ".opus", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64",
}  # fmt: skip
ALLOWED = "WAV, FLAC, Ogg, Opus, MP3, AAC, M4A, AIFF, AU, CAF, W64, WMA, and the audio of videos"
_BLOCK = 1 << 20  # samples of all channels that are read at a time
_LOUDEST = 1e6  # recordings lie in [-1, 1]; even those that were never scaled, in 16 bits, are below

Waveform = tuple[np.ndarray, int]  # float32 [N] mono, samples per second


def open_recording(media: Media, settings: DecodingSettings = DEFAULTS) -> "OpenRecording":
    """Read the header of a recording. Raises BadSample for what is none, or has a rate that `settings` do not allow."""
    first, second = (_ByLibsndfile, _ByFFmpeg) if media.suffix in BY_LIBSNDFILE else (_ByFFmpeg, _ByLibsndfile)
    try:
        waveform = first(media, settings)
    except BadSample as bad:
        if bad.reason != "unreadable audio":
            raise
        try:
            waveform = second(media, settings)  # its name ends in what it is not
        except BadSample:
            raise BadSample(bad.reason, f"{bad.detail}; read are {ALLOWED}") from None
    if not settings.audio_min_rate <= waveform.rate <= settings.audio_max_rate:
        waveform.close()
        allowed = f"data.decoding.audio_min_rate to audio_max_rate, {settings.audio_min_rate} to {settings.audio_max_rate}"
        raise BadSample("too large", f"{media.name}: {waveform.rate} samples a second, allowed are {allowed}")
    return waveform


class OpenRecording:
    """A recording whose header has been read.

    length: samples, None where that is not known.
    rate: samples a second.
    """

    def __init__(self, name: str, length: int | None, channels: int, rate: int, settings: DecodingSettings):
        self.name, self.length, self.channels, self.rate, self._settings = name, length, channels, rate, settings

    def samples(self, first: int = 0, count: int | None = None) -> Waveform:
        """Read `count` samples, or all that are left, and close it. Raises BadSample for what is damaged, too long, or not of
        numbers that a recording has."""
        pieces, total = [], 0
        try:
            if count is None and self.length is not None:  # what the header says spares the work, if it is true
                self._check((self.length - first) * self.channels)
            for piece_CN in self._read(first, count):
                total += piece_CN.size
                self._check(total)
                pieces.append(piece_CN[0] if len(piece_CN) == 1 else piece_CN.mean(axis=0))
        except BadSample:
            raise
        except MemoryError as error:
            raise BadSample("too large", f"{self.name}: no memory for it") from error
        except Exception as error:  # the errors of both libraries, and what they run into with damaged files
            raise _unreadable(self.name, error) from error
        finally:
            self.close()
        mono_N = pieces[0] if len(pieces) == 1 else np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
        if not len(mono_N):
            raise BadSample("unreadable audio", f"{self.name}: it has no samples")
        if not (np.abs(mono_N).max() < _LOUDEST):  # also finds what is not a number
            raise BadSample("unreadable audio", f"{self.name}: samples that are not finite numbers, or beyond {_LOUDEST:g}")
        return np.ascontiguousarray(mono_N, dtype=np.float32), self.rate

    def _check(self, samples: int) -> None:
        if samples > self._settings.audio_samples:
            limit = f"data.decoding.audio_samples = {self._settings.audio_samples}"
            raise BadSample("too large", f"{self.name}: samples of all channels are more than {limit}")
        if samples > self._settings.audio_seconds * self.rate * self.channels:
            limit = f"data.decoding.audio_seconds = {self._settings.audio_seconds:g}"
            raise BadSample("too large", f"{self.name}: longer than {limit}")

    def close(self) -> None:
        raise NotImplementedError

    def _read(self, first: int, count: int | None) -> Iterator[np.ndarray]:
        """Runs of float32 [C, N]."""
        raise NotImplementedError


def _unreadable(name: str, error: Exception) -> BadSample:
    message = str(error).strip().partition("\n")[0] or type(error).__name__
    return BadSample("unreadable audio", f"{name}: {message}")


class _ByLibsndfile(OpenRecording):
    def __init__(self, media: Media, settings: DecodingSettings):
        self._file = media.open()
        try:
            self._waveform = soundfile.SoundFile(self._file)
        except Exception as error:
            self._file.close()
            raise _unreadable(media.name, error) from error
        super().__init__(media.name, self._waveform.frames, self._waveform.channels, self._waveform.samplerate, settings)

    def close(self) -> None:
        self._waveform.close()
        self._file.close()

    def _read(self, first: int, count: int | None) -> Iterator[np.ndarray]:
        if first:
            self._waveform.seek(first)
        left, most = self.length - first if count is None else count, max(1, _BLOCK // self.channels)
        while left > 0:
            piece_NC = self._waveform.read(min(left, most), dtype="float32", always_2d=True)
            if not len(piece_NC):
                return
            yield piece_NC.T
            left -= len(piece_NC)


class _ByFFmpeg(OpenRecording):
    def __init__(self, media: Media, settings: DecodingSettings):
        with ExitStack() as stack:
            self._container = stack.enter_context(opened(media, "unreadable audio"))
            if not self._container.streams.audio:
                raise BadSample("no audio", media.name)
            self._stream = stream = self._container.streams.audio[0]
            stream.codec_context.thread_count = 1
            if not stream.rate or not stream.channels:
                raise BadSample("unreadable audio", f"{media.name}: its header names no sampling rate")
            # elsewhere a length is a guess by the bit rate, and a seek ends somewhere within a frame
            self._seeks = stream.duration is not None and finds_times(self._container)
            length = int(stream.duration * stream.time_base * stream.rate) if self._seeks else None
            super().__init__(media.name, length, stream.channels, stream.rate, settings)
            self._open = stack.pop_all()

    def close(self) -> None:
        self._open.close()

    def _read(self, first: int, count: int | None) -> Iterator[np.ndarray]:
        """From a packet at or before `first`, of which the samples before it are cut off; from the first packet where seeks are
        not exact."""
        # packed, as one plane: PyAV looks for the ninth plane and those after it where they are not
        total, skipped, packed, stream = 0, None, av.AudioResampler(format="flt"), self._stream
        if first and self._seeks:
            self._container.seek(int((stream.start_time or 0) + first / self.rate / stream.time_base), stream=stream)
        for frame in self._container.decode(stream):
            if skipped is None:
                at = 0
                if self._seeks and frame.pts is not None:
                    at = round((frame.pts - (stream.start_time or 0)) * frame.time_base * self.rate)
                skipped = max(0, first - at) if first else 0
            for piece in packed.resample(frame):
                piece_CN = piece.to_ndarray().reshape(-1, piece.layout.nb_channels).T
                # of this piece what lies in the wanted stretch
                begin, end = max(0, skipped - total), piece_CN.shape[1] if count is None else skipped + count - total
                total += piece_CN.shape[1]
                if begin < min(end, piece_CN.shape[1]):
                    yield piece_CN[:, begin:end]
            if count is not None and total >= skipped + count:
                return
