"""Sounds by libsndfile, or else, and of films, by FFmpeg: opened, then read whole or in part.

Shapes: C channels, N samples.
"""

from contextlib import ExitStack

import av
import numpy as np
import soundfile

from imp_ds.data.decoding.container import opened
from imp_ds.data.samples import BadSample, Media

BY_LIBSNDFILE = {".wav", ".flac", ".ogg", ".mp3", ".opus"}  # every other sound, and all films, by FFmpeg
MAX_SOUND_SAMPLES = 1 << 28  # an hour and a half at 48 kHz, 1 GiB as float32
_DAMAGED = (soundfile.SoundFileError, OSError, ValueError)

Sound = tuple[np.ndarray, int]  # float32 [N] mono, samples per second


def open_sound(media: Media) -> "OpenSound":
    """Read the header of a sound. Raises BadSample for what is no sound."""
    return _ByLibsndfile(media) if media.suffix in BY_LIBSNDFILE else _ByFFmpeg(media)


class OpenSound:
    """A sound whose header has been read.

    length: samples, None where that is not known.
    rate: samples a second.
    """

    def __init__(self, name: str, length: int | None, channels: int, rate: int):
        self.name, self.length, self.channels, self.rate = name, length, channels, rate

    def samples(self, first: int = 0, count: int | None = None) -> Sound:
        """Read `count` samples, or all that are left, and close it. Raises BadSample for what is damaged, too long, or not of
        finite numbers."""
        samples_CN = self._read(first, count)
        if samples_CN.shape[1] == 0:
            raise BadSample("unreadable sound", f"{self.name}: it has no samples")
        mono_N = samples_CN[0] if len(samples_CN) == 1 else samples_CN.mean(axis=0)
        if not np.isfinite(mono_N).all():
            raise BadSample("unreadable sound", f"{self.name}: samples that are not finite numbers")
        return np.ascontiguousarray(mono_N, dtype=np.float32), self.rate

    def _read(self, first: int, count: int | None) -> np.ndarray:
        raise NotImplementedError

    def _check_length(self, samples: int) -> None:
        """Of all channels."""
        if samples > MAX_SOUND_SAMPLES:
            raise BadSample("too large", f"{self.name}: {samples} samples are more than {MAX_SOUND_SAMPLES}")


class _ByLibsndfile(OpenSound):
    def __init__(self, media: Media):
        self._file = media.open()
        try:
            self._sound = soundfile.SoundFile(self._file)
        except _DAMAGED as error:
            self._file.close()
            raise BadSample("unreadable sound", f"{media.name}: {error}") from error
        super().__init__(media.name, self._sound.frames, self._sound.channels, self._sound.samplerate)

    def _read(self, first: int, count: int | None) -> np.ndarray:
        with self._file:
            try:
                with self._sound:
                    self._check_length((self.length if count is None else count) * self.channels)
                    if first:
                        self._sound.seek(first)
                    return self._sound.read(-1 if count is None else count, dtype="float32", always_2d=True).T
            except _DAMAGED as error:
                raise BadSample("unreadable sound", f"{self.name}: {error}") from error


class _ByFFmpeg(OpenSound):
    def __init__(self, media: Media):
        with ExitStack() as stack:
            self._container = stack.enter_context(opened(media, "unreadable sound"))
            if not self._container.streams.audio:
                raise BadSample("no sound", media.name)
            self._stream = stream = self._container.streams.audio[0]
            stream.codec_context.thread_count = 1
            length = None if stream.duration is None else int(stream.duration * stream.time_base * stream.rate)
            super().__init__(media.name, length, stream.channels, stream.rate)
            self._open = stack.pop_all()

    def _read(self, first: int, count: int | None) -> np.ndarray:
        with self._open:
            return self._decoded(first, count)

    def _decoded(self, first: int, count: int | None) -> np.ndarray:
        """Frames from a packet at or before `first`, of which the samples before it are cut off."""
        pieces, total, skipped, planar, stream = [], 0, None, av.AudioResampler(format="fltp"), self._stream
        if first:
            self._container.seek(int((stream.start_time or 0) + first / self.rate / stream.time_base), stream=stream)
        for frame in self._container.decode(stream):
            if skipped is None:
                at = 0 if frame.pts is None else round((frame.pts - (stream.start_time or 0)) * frame.time_base * self.rate)
                skipped = max(0, first - at) if first else 0
            for piece in planar.resample(frame):
                pieces.append(piece.to_ndarray())
                total += pieces[-1].shape[1]
                self._check_length(total * len(pieces[-1]))
            if count is not None and total >= skipped + count:
                break
        if not pieces:
            raise BadSample("unreadable sound", f"{self.name}: it has no samples")
        end = None if count is None else skipped + count
        return np.concatenate(pieces, axis=1)[:, skipped or 0 : end]
