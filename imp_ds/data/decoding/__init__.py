"""From a row of a source to what a processor takes: frames, sound, one caption, a label.

Media are handed to the decoders as file objects, with the containers that we mean to read named one by one: a playlist that
poses as a film can fetch nothing. Sizes are read from the header before anything is decoded. All that is random comes from the
sample's own generator, so a sample looks the same whoever decodes it. Evaluation draws nothing: it takes the first caption,
and every window of a long recording.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from imp_ds.data.decoding.picture import read_clips
from imp_ds.data.decoding.sound import read_sounds, read_windows
from imp_ds.data.decoding.turns import in_turn
from imp_ds.data.files.cache import MediaCache
from imp_ds.data.samples import BadSample, Media, RawSample
from imp_ds.decoding_settings import DEFAULTS, DecodingSettings
from imp_ds.tasks import Augmentation, Task, Views

_UNCHANGED = Augmentation()


class Wanted(NamedTuple):
    """What a sample must have, beside the views' media, to be of use.

    label: a class at all; classes: one below this number.
    has_tokens: whether a caption has a token of the tokenizer, beside its marks; None where that is not known.
    settings: how it is decoded, and how large it may be.
    """

    label: bool = False
    classes: int | None = None
    has_tokens: Callable[[str], bool] | None = None
    settings: DecodingSettings = DEFAULTS

    @classmethod
    def of(cls, task: Task, settings: DecodingSettings, has_tokens: Callable[[str], bool] | None = None) -> "Wanted":
        """What a task wants of its samples."""
        return cls(task.needs.label, task.needs.classes, has_tokens, settings)


_MISSING = {"vision": "no pictures", "audio": "no sound", "text": "no text", "label": "missing column"}


def decode(
    raw: RawSample, views: Views, rng: np.random.Generator | None = None, cache: MediaCache | None = None, *,
    augment: Augmentation = _UNCHANGED, wanted: Wanted = Wanted(),
) -> dict:  # fmt: skip
    """One sample, as `decode_all` gives it. Raises BadSample for what cannot be decoded and for what is missing."""
    (found,) = decode_all([raw], views, [rng], cache, augment=augment, wanted=wanted)
    if isinstance(found, BadSample):
        raise found
    return found


def decode_all(
    raws: Sequence[RawSample | BadSample], views: Views, rngs: Sequence[np.random.Generator | None],
    cache: MediaCache | None = None, *, augment: Augmentation = _UNCHANGED, wanted: Wanted = Wanted(),
) -> list[dict | BadSample]:  # fmt: skip
    """The samples, each with an entry for each view: "vision": uint8 [T, H, W, 3]; "audio": (float32 [N] mono, rate); "text":
    str; and "label": int where the source has one.

    Args:
        raws: what a reader gives; a BadSample stays what it is.
        rngs: each draws its sample's caption, the clip of a film, the window of a sound and what `augment` changes. None draws
            nothing: the first caption, the middle clip, the whole sound.
        cache: keeps decoded frames and sounds that do not hang on what is drawn.
        wanted: what else a sample must have to be of use, and how it is decoded.

    A sample that cannot be decoded, or lacks something, has a BadSample instead, and the others go on.
    """
    cache = MediaCache(0) if cache is None else cache
    needed = [*views.names(), *(["label"] if wanted.label else [])]

    def begun(raw: RawSample, rng: np.random.Generator | None) -> dict:
        _check_complete(raw, needed)
        sample = {}
        if views.text is not None:
            captions = _captions(raw["text"], wanted)
            sample["text"] = captions[0 if rng is None else int(rng.integers(len(captions)))]
        if "label" in raw:
            sample["label"] = int(raw["label"])
            if wanted.classes is not None and not 0 <= sample["label"] < wanted.classes:
                raise BadSample("no such class", f"label {sample['label']}, of {wanted.classes} classes")
        return sample

    samples = in_turn(begun, raws, rngs)
    if views.vision is not None:
        media = _media("vision", samples, raws)
        samples = _with("vision", samples, read_clips(media, views.vision, rngs, cache, augment, wanted.settings))
    if views.audio is not None:
        media = _media("audio", samples, raws)
        samples = _with("audio", samples, read_sounds(media, views.audio.seconds, rngs, cache, augment.speed, wanted.settings))
    return samples


def decode_windows(raw: RawSample, views: Views, cache: MediaCache | None = None, wanted: Wanted = Wanted()) -> list[dict]:
    """The sample as often as its sound has windows of `views.audio.seconds`, one after another, the last one up to the end; once
    without a view of sound. Nothing is random. Raises BadSample as `decode` does."""
    cache = MediaCache(0) if cache is None else cache
    if views.audio is None:
        return [decode(raw, views, None, cache, wanted=wanted)]
    _check_complete(raw, views.names())
    rest = decode(raw, views.model_copy(update={"audio": None}), None, cache, wanted=wanted)
    return [rest | {"audio": window} for window in read_windows(raw["audio"], views.audio.seconds, cache, wanted.settings)]


def _captions(captions: list[str], wanted: Wanted) -> list[str]:
    """Those that have a token. Raises BadSample where none has one, and for one that is too long."""
    if (longest := max(map(len, captions))) > wanted.settings.caption_characters:
        raise BadSample("too large", f"a caption of {longest} characters, more than {wanted.settings.caption_characters}")
    if wanted.has_tokens is not None and not all(map(_surely_has_tokens, captions)):
        captions = [caption for caption in captions if _surely_has_tokens(caption) or wanted.has_tokens(caption)]
    if not captions:
        raise BadSample("no text", "captions of which the tokenizer makes no token")
    return captions


def _surely_has_tokens(caption: str) -> bool:
    """What has a letter or a digit is a word to every tokenizer, if an unknown one."""
    return any(map(str.isalnum, caption))


def _check_complete(raw: RawSample, needed: Sequence[str]) -> None:
    for role in needed:
        if (value := raw.get(role)) is None or value == []:
            raise BadSample(_MISSING[role])


def _media(role: str, samples: list[dict | BadSample], raws: Sequence[RawSample | BadSample]) -> list[Media | BadSample]:
    """What is to be decoded for that role: nothing for a sample that is of no use already."""
    return [sample if type(sample) is BadSample else raw[role] for sample, raw in zip(samples, raws, strict=True)]


def _with(role: str, samples: list[dict | BadSample], values: list) -> list[dict | BadSample]:
    """The samples with one more entry; a BadSample among the values, which stands there for one in `samples` too, takes the
    sample's position."""
    for position, value in enumerate(values):
        if type(value) is BadSample:
            samples[position] = value
        else:
            samples[position][role] = value
    return samples
