"""Sounds by libsndfile, or else, and of films, by FFmpeg: all of a sound, or one window of a long one.

Shapes: C channels, N samples.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import av
import numpy as np
import soundfile

from imp_ds.data.cache import MediaCache
from imp_ds.data.decoding.container import opened
from imp_ds.data.decoding.turns import in_turn, opened_in_parts
from imp_ds.data.samples import BadSample, Media

BY_LIBSNDFILE = {".wav", ".flac", ".ogg", ".mp3", ".opus"}  # every other sound, and all films, by FFmpeg
MAX_SOUND_SAMPLES = 1 << 28  # an hour and a half at 48 kHz, 1 GiB as float32
_SPEEDS = 100  # steps of a speed of 1: the resampler designs a filter for each

Sound = tuple[np.ndarray, int]  # float32 [N] mono, samples per second


class _Opened(NamedTuple):
    """What a header says, samples of a channel (None: not known), channels, their rate; and how a part of the sound is read."""

    length: int | None
    channels: int
    rate: int
    read: Callable[[int, int | None], np.ndarray]  # (first, count or None for the rest) -> float32 [C, N]


class OpenSound:
    """A sound whose header has been read. `samples` reads it, or a part of it, and closes it.

    length: samples, None where that is not known.
    rate: samples a second.
    bytes: that all of it takes when it is decoded, as far as that is known.

    Raises BadSample for what is no sound.
    """

    def __init__(self, media: Media):
        self.name, self._context = media.name, _sound(media)
        self.length, channels, self.rate, self._read = self._context.__enter__()
        self.bytes = 4 * channels * (self.length or 0)

    def samples(self, first: int = 0, count: int | None = None) -> Sound:
        """`count` samples, or all that are left. Raises BadSample for what is damaged, too long, or not of finite numbers."""
        with ExitStack() as stack:
            stack.push(self._context)
            return _mono(self._read(first, count), self.name), self.rate


def read_sounds(
    media: Sequence[Media | BadSample], seconds: float, rngs: Sequence[np.random.Generator | None], cache: MediaCache,
    speed: float = 0.0,
) -> list[Sound | BadSample]:  # fmt: skip
    """Each sound; with a generator, of one that is longer than `seconds` a window of that length at a random place.

    speed: largest relative change of its speed and pitch, drawn uniformly; it is told as another rate, since the sound is
    brought to the extractor's rate anyway.

    What is no sound, is damaged, too long, or not of finite numbers has a BadSample instead.
    """

    def key(media: Media, rng: np.random.Generator | None) -> tuple:
        return (media.name, "sound") if rng is None else (media.name, "sound", seconds)

    def opened(media: Media, rng: np.random.Generator | None) -> OpenSound | None:
        return None if key(media, rng) in cache else OpenSound(media)

    def read(sound: OpenSound | None, media: Media, rng: np.random.Generator | None) -> Sound:
        whole = lambda: cache.get(key(media, rng), lambda: sound.samples())  # noqa: E731
        if rng is None:
            return whole()
        factor = 1.0 if not speed else 1.0 + round(float(rng.uniform(-speed, speed)) * _SPEEDS) / _SPEEDS
        samples_N, rate = _window(sound, whole, seconds * factor, 2 * seconds * (1 + speed), float(rng.random()))
        return samples_N, max(1, round(rate * factor))

    sounds = []
    for part, some in opened_in_parts(opened, media, rngs):
        sounds += in_turn(read, some, media[part], rngs[part])
    return sounds


def _window(sound: OpenSound | None, whole: Callable[[], Sound], seconds: float, long: float, place: float) -> Sound:
    """A window, read alone where the sound is longer than `long` seconds, else cut from all of it; all of a short sound.

    place: of the window, from 0 to 1.
    """
    if sound is not None and sound.length is not None and sound.length > long * sound.rate:
        wanted = round(seconds * sound.rate)
        return sound.samples(int(place * (sound.length - wanted + 1)), wanted)
    samples_N, rate = whole()
    if len(samples_N) > (wanted := round(seconds * rate)):
        start = int(place * (len(samples_N) - wanted + 1))
        samples_N = samples_N[start : start + wanted]
    return samples_N, rate


def read_windows(media: Media, seconds: float, cache: MediaCache) -> list[Sound]:
    """The sound in windows of `seconds`, one after another, the last one up to its end; the whole one when it is not longer."""
    samples_N, rate = cache.get((media.name, "sound"), lambda: OpenSound(media).samples())
    length = round(seconds * rate)
    if len(samples_N) <= length:
        return [(samples_N, rate)]
    starts = [*range(0, len(samples_N) - length, length), len(samples_N) - length]
    return [(samples_N[start : start + length], rate) for start in starts]


@contextmanager
def _sound(media: Media):
    if media.suffix in BY_LIBSNDFILE:
        with media.open() as file:
            try:
                with soundfile.SoundFile(file) as sound:
                    yield _by_libsndfile(sound, media)
            except (soundfile.SoundFileError, OSError, ValueError) as error:
                raise BadSample("unreadable sound", f"{media.name}: {error}") from error
    else:
        with opened(media, "unreadable sound") as container:
            if not container.streams.audio:
                raise BadSample("no sound", media.name)
            yield _by_ffmpeg(container, media)


def _by_libsndfile(sound: soundfile.SoundFile, media: Media) -> _Opened:
    def read(first: int, count: int | None) -> np.ndarray:
        _check_length((sound.frames if count is None else count) * sound.channels, media)
        sound.seek(first)
        return sound.read(-1 if count is None else count, dtype="float32", always_2d=True).T

    return _Opened(sound.frames, sound.channels, sound.samplerate, read)


def _by_ffmpeg(container, media: Media) -> _Opened:
    stream = container.streams.audio[0]
    stream.codec_context.thread_count = 1
    rate = stream.rate
    length = None if stream.duration is None else int(stream.duration * stream.time_base * rate)

    def read(first: int, count: int | None) -> np.ndarray:
        """Frames from a packet at or before `first`, of which the samples before it are cut off."""
        pieces, total, skipped, planar = [], 0, None, av.AudioResampler(format="fltp")
        if first:
            container.seek(int((stream.start_time or 0) + first / rate / stream.time_base), stream=stream)
        for frame in container.decode(stream):
            if skipped is None:
                at = 0 if frame.pts is None else round((frame.pts - (stream.start_time or 0)) * frame.time_base * rate)
                skipped = max(0, first - at) if first else 0
            for piece in planar.resample(frame):
                pieces.append(piece.to_ndarray())
                total += pieces[-1].shape[1]
                _check_length(total * len(pieces[-1]), media)
            if count is not None and total >= skipped + count:
                break
        if not pieces:
            raise BadSample("unreadable sound", f"{media.name}: it has no samples")
        end = None if count is None else skipped + count
        return np.concatenate(pieces, axis=1)[:, skipped or 0 : end]

    return _Opened(length, stream.channels, rate, read)


def _check_length(samples: int, media: Media) -> None:
    if samples > MAX_SOUND_SAMPLES:
        raise BadSample("too large", f"{media.name}: {samples} samples are more than {MAX_SOUND_SAMPLES}")


def _mono(samples_CN: np.ndarray, name: str) -> np.ndarray:
    if samples_CN.shape[1] == 0:
        raise BadSample("unreadable sound", f"{name}: it has no samples")
    mono_N = samples_CN[0] if len(samples_CN) == 1 else samples_CN.mean(axis=0)
    if not np.isfinite(mono_N).all():
        raise BadSample("unreadable sound", f"{name}: samples that are not finite numbers")
    return np.ascontiguousarray(mono_N, dtype=np.float32)
