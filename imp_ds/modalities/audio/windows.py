"""Which part of a sound is heard: all of it, windows one after another, or one window at random.

Shapes: N samples.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np

from imp_ds.modalities.audio.recordings import OpenSound, Sound, open_sound
from imp_ds.modalities.decoding_settings import DEFAULTS, DecodingSettings
from imp_ds.modalities.in_turn import in_turn
from imp_ds.modalities.media import BadSample, Media
from imp_ds.modalities.media_cache import MediaCache

_SPEEDS = 100  # steps of a speed of 1: the resampler designs a filter for each


def read_sounds(
    media: Sequence[Media | BadSample], seconds: float, rngs: Sequence[np.random.Generator | None], cache: MediaCache,
    speed: float = 0.0, settings: DecodingSettings = DEFAULTS,
) -> list[Sound | BadSample]:  # fmt: skip
    """Each sound; with a generator, of one that is longer than `seconds` a window of that length at a random place.

    speed: largest relative change of its speed and pitch, drawn uniformly; it is told as another rate, since the sound is
    brought to the extractor's rate anyway.

    What is no sound, is damaged, too long, or not of finite numbers has a BadSample instead.
    """
    return in_turn(partial(_heard, seconds, speed, cache, settings), media, rngs)


def read_windows(media: Media, seconds: float, cache: MediaCache, settings: DecodingSettings = DEFAULTS) -> list[Sound]:
    """The sound in windows of `seconds`, one after another, the last one up to its end; the whole one when it is not longer."""
    samples_N, rate = cache.get((media.name, "sound"), lambda: open_sound(media, settings).samples())
    length = round(seconds * rate)
    if len(samples_N) <= length:
        return [(samples_N, rate)]
    starts = [*range(0, len(samples_N) - length, length), len(samples_N) - length]
    return [(samples_N[start : start + length], rate) for start in starts]


def _heard(seconds: float, speed: float, cache: MediaCache, settings: DecodingSettings, media: Media, rng) -> Sound:
    # opened and read at once: both are one library's code, so to open many first, as of images, gains nothing
    # what a whole sound is kept under: what is drawn must not hang on what others have read of it
    key = (media.name, "sound") if rng is None else (media.name, "sound", seconds)
    sound = None if key in cache else open_sound(media, settings)
    if rng is None:
        return _complete(sound, key, cache)
    factor = 1.0 if not speed else 1.0 + round(rng.uniform(-speed, speed) * _SPEEDS) / _SPEEDS
    window, place = seconds * factor, rng.random()
    if sound is not None and sound.length is not None and sound.length > 2 * seconds * (1 + speed) * sound.rate:
        wanted = round(window * sound.rate)
        samples_N, rate = sound.samples(int(place * (sound.length - wanted + 1)), wanted)
    else:
        samples_N, rate = _complete(sound, key, cache)
        if len(samples_N) > (wanted := round(window * rate)):
            start = int(place * (len(samples_N) - wanted + 1))
            samples_N = samples_N[start : start + wanted]
    return samples_N, max(1, round(rate * factor))


def _complete(sound: OpenSound | None, key: tuple, cache: MediaCache) -> Sound:
    return cache.get(key, lambda: sound.samples())
