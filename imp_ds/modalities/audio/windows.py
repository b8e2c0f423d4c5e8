"""Which part of a recording is taken: all of it, windows one after another, or one window at random.

Shapes: N samples.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np

from imp_ds.modalities.audio.recordings import OpenRecording, Waveform, open_recording
from imp_ds.modalities.decoding_settings import DEFAULTS, DecodingSettings
from imp_ds.modalities.in_turn import in_turn
from imp_ds.modalities.media import BadSample, Media
from imp_ds.modalities.media_cache import MediaCache

_SPEEDS = 100  # steps of a speed of 1: the resampler designs a filter for each


def read_recordings(
    media: Sequence[Media | BadSample], seconds: float, rngs: Sequence[np.random.Generator | None], cache: MediaCache,
    speed: float = 0.0, settings: DecodingSettings = DEFAULTS,
) -> list[Waveform | BadSample]:  # fmt: skip
    """Each recording; with a generator, of one that is longer than `seconds` a window of that length at a random place.

    speed: largest relative change of its speed and pitch, drawn uniformly; it is given as another rate, since the recording is
    brought to the extractor's rate anyway.

    What is no recording, is damaged, too long, or not of finite numbers has a BadSample instead.
    """
    return in_turn(partial(_one_window, seconds, speed, cache, settings), media, rngs)


def read_windows(media: Media, seconds: float, cache: MediaCache, settings: DecodingSettings = DEFAULTS) -> list[Waveform]:
    """The recording in windows of `seconds`, one after another, the last one up to its end; the whole one when it is not
    longer."""
    samples_N, rate = cache.get((media.name, "audio"), lambda: open_recording(media, settings).samples())
    length = round(seconds * rate)
    if len(samples_N) <= length:
        return [(samples_N, rate)]
    starts = [*range(0, len(samples_N) - length, length), len(samples_N) - length]
    return [(samples_N[start : start + length], rate) for start in starts]


def _one_window(seconds: float, speed: float, cache: MediaCache, settings: DecodingSettings, media: Media, rng) -> Waveform:
    # opened and read at once: both are one library's code, so to open many first, as of images, gains nothing
    # what a whole recording is kept under: what is drawn must not hang on what others have read of it
    key = (media.name, "audio") if rng is None else (media.name, "audio", seconds)
    waveform = None if key in cache else open_recording(media, settings)
    if rng is None:
        return _complete(waveform, key, cache)
    factor = 1.0 if not speed else 1.0 + round(rng.uniform(-speed, speed) * _SPEEDS) / _SPEEDS
    window, place = seconds * factor, rng.random()
    if waveform is not None and waveform.length is not None and waveform.length > 2 * seconds * (1 + speed) * waveform.rate:
        wanted = round(window * waveform.rate)
        samples_N, rate = waveform.samples(int(place * (waveform.length - wanted + 1)), wanted)
    else:
        samples_N, rate = _complete(waveform, key, cache)
        if len(samples_N) > (wanted := round(window * rate)):
            start = int(place * (len(samples_N) - wanted + 1))
            samples_N = samples_N[start : start + wanted]
    return samples_N, max(1, round(rate * factor))


def _complete(waveform: OpenRecording | None, key: tuple, cache: MediaCache) -> Waveform:
    return cache.get(key, lambda: waveform.samples())
