"""From a row of a source to what a processor takes: frames, sound, one caption, a label.

Media are handed to the decoders as file objects, with the containers that we mean to read named one by one: a playlist that
poses as a film can fetch nothing. Sizes are read from the header before anything is decoded. All that is random comes from the
sample's own generator, so a sample looks the same whoever decodes it. Evaluation draws nothing: it takes the first caption,
and every window of a long recording.
"""

import numpy as np

from imp_ds.data.cache import MediaCache
from imp_ds.data.decoding.film import FILMS, read_film
from imp_ds.data.decoding.image import read_image
from imp_ds.data.decoding.picture import augmented, pixels_needed
from imp_ds.data.decoding.sound import read_sound, read_windows
from imp_ds.data.samples import BadSample, Media, RawSample
from imp_ds.tasks import Augmentation, Views

_UNCHANGED = Augmentation()
_MISSING = {"vision": "no pictures", "audio": "no sound", "text": "no text", "label": "missing column"}


def decode(
    raw: RawSample, views: Views, rng: np.random.Generator | None = None, cache: MediaCache | None = None, *,
    augment: Augmentation = _UNCHANGED, needs_label: bool = False,
) -> dict:  # fmt: skip
    """One sample, with an entry for each view: "vision": uint8 [T, H, W, 3]; "audio": (float32 [N] mono, rate); "text": str;
    and "label": int where the source has one.

    Args:
        raw: what a reader gives.
        rng: draws the caption, the clip of a film, the window of a sound and what `augment` changes. None draws nothing: the
            first caption, the middle clip, the whole sound.
        cache: keeps decoded frames and sounds that do not hang on what is drawn.
        needs_label: a sample without a class is of no use.

    Raises BadSample for what cannot be decoded and for what is missing.
    """
    cache, sample = MediaCache(0) if cache is None else cache, {}
    _check_complete(raw, views, needs_label)
    if views.text is not None:
        captions = raw["text"]
        sample["text"] = captions[0 if rng is None else int(rng.integers(len(captions)))]
    if views.vision is not None:
        sample["vision"] = _vision(raw["vision"], views.vision, rng, cache, augment)
    if views.audio is not None:
        sample["audio"] = read_sound(raw["audio"], views.audio.seconds, rng, cache, augment.speed)
    if "label" in raw:
        sample["label"] = int(raw["label"])
    return sample


def decode_windows(raw: RawSample, views: Views, cache: MediaCache | None = None) -> list[dict]:
    """The sample as often as its sound has windows of `views.audio.seconds`, one after another, the last one up to the end; once
    without a view of sound. Nothing is random. Raises BadSample as `decode` does."""
    cache = MediaCache(0) if cache is None else cache
    if views.audio is None:
        return [decode(raw, views, None, cache)]
    _check_complete(raw, views, False)
    rest = decode(raw, views.model_copy(update={"audio": None}), None, cache)
    return [rest | {"audio": window} for window in read_windows(raw["audio"], views.audio.seconds, cache)]


def _check_complete(raw: RawSample, views: Views, needs_label: bool) -> None:
    for role in [*views.names(), *(["label"] if needs_label else [])]:
        if raw.get(role) in (None, []):
            raise BadSample(_MISSING[role])


def _vision(media: Media, view, rng, cache: MediaCache, augment: Augmentation) -> np.ndarray:
    if media.suffix in FILMS:
        clip_THWC = read_film(media, view, rng, cache)
    else:
        needed = pixels_needed(view, augment)
        clip_THWC = cache.get((media.name, needed), lambda: read_image(media, needed))[None]
    return augmented(clip_THWC, view, augment, rng)
