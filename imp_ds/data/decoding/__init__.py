"""From a row of a source to what a processor takes: frames, sound, one caption, a label.

Media are handed to the decoders as file objects, with the containers that we mean to read named one by one: a playlist that
poses as a film can fetch nothing. Sizes are read from the header before anything is decoded. All that is random comes from the
sample's own generator, so a sample looks the same whoever decodes it. Evaluation draws nothing: it takes the first caption,
and every window of a long recording.
"""

from collections.abc import Sequence

import numpy as np

from imp_ds.data.cache import MediaCache
from imp_ds.data.decoding.picture import read_clips
from imp_ds.data.decoding.sound import read_sounds, read_windows
from imp_ds.data.decoding.turns import in_turn
from imp_ds.data.samples import BadSample, Media, RawSample
from imp_ds.tasks import Augmentation, Views

_UNCHANGED = Augmentation()
_MISSING = {"vision": "no pictures", "audio": "no sound", "text": "no text", "label": "missing column"}


def decode(
    raw: RawSample, views: Views, rng: np.random.Generator | None = None, cache: MediaCache | None = None, *,
    augment: Augmentation = _UNCHANGED, needs_label: bool = False,
) -> dict:  # fmt: skip
    """One sample, as `decode_all` gives it. Raises BadSample for what cannot be decoded and for what is missing."""
    (found,) = decode_all([raw], views, [rng], cache, augment=augment, needs_label=needs_label)
    if isinstance(found, BadSample):
        raise found
    return found


def decode_all(
    raws: Sequence[RawSample | BadSample], views: Views, rngs: Sequence[np.random.Generator | None],
    cache: MediaCache | None = None, *, augment: Augmentation = _UNCHANGED, needs_label: bool = False,
) -> list[dict | BadSample]:  # fmt: skip
    """The samples, each with an entry for each view: "vision": uint8 [T, H, W, 3]; "audio": (float32 [N] mono, rate); "text":
    str; and "label": int where the source has one.

    Args:
        raws: what a reader gives; a BadSample stays what it is.
        rngs: each draws its sample's caption, the clip of a film, the window of a sound and what `augment` changes. None draws
            nothing: the first caption, the middle clip, the whole sound.
        cache: keeps decoded frames and sounds that do not hang on what is drawn.
        needs_label: a sample without a class is of no use.

    A sample that cannot be decoded, or lacks something, has a BadSample instead, and the others go on.
    """
    cache = MediaCache(0) if cache is None else cache
    needed = [*views.names(), *(["label"] if needs_label else [])]

    def begun(raw: RawSample, rng: np.random.Generator | None) -> dict:
        _check_complete(raw, needed)
        sample = {}
        if views.text is not None:
            sample["text"] = raw["text"][0 if rng is None else int(rng.integers(len(raw["text"])))]
        if "label" in raw:
            sample["label"] = int(raw["label"])
        return sample

    samples = in_turn(begun, raws, rngs)
    if views.vision is not None:
        media = _media("vision", samples, raws)
        samples = _with("vision", samples, read_clips(media, views.vision, rngs, cache, augment))
    if views.audio is not None:
        media = _media("audio", samples, raws)
        samples = _with("audio", samples, read_sounds(media, views.audio.seconds, rngs, cache, augment.speed))
    return samples


def decode_windows(raw: RawSample, views: Views, cache: MediaCache | None = None) -> list[dict]:
    """The sample as often as its sound has windows of `views.audio.seconds`, one after another, the last one up to the end; once
    without a view of sound. Nothing is random. Raises BadSample as `decode` does."""
    cache = MediaCache(0) if cache is None else cache
    if views.audio is None:
        return [decode(raw, views, None, cache)]
    _check_complete(raw, views.names())
    rest = decode(raw, views.model_copy(update={"audio": None}), None, cache)
    return [rest | {"audio": window} for window in read_windows(raw["audio"], views.audio.seconds, cache)]


def _check_complete(raw: RawSample, needed: Sequence[str]) -> None:
    for role in needed:
        if (value := raw.get(role)) is None or value == []:
            raise BadSample(_MISSING[role])


def _media(role: str, samples: list[dict | BadSample], raws: Sequence[RawSample | BadSample]) -> list[Media | BadSample]:
    """What is to be decoded for that role: nothing for a sample that is of no use already."""
    return [sample if type(sample) is BadSample else raw[role] for sample, raw in zip(samples, raws, strict=True)]


def _with(role: str, samples: list[dict | BadSample], values: list) -> list[dict | BadSample]:
    """The samples with one more entry; a BadSample among the values, which stands there for one in `samples` too, takes the
    sample's place."""
    for place, value in enumerate(values):
        if type(value) is BadSample:
            samples[place] = value
        else:
            samples[place][role] = value
    return samples
