"""From a row of a source to what a processor takes: one sample of each modality in view, and a label.

Media are handed to the decoders as file objects, with the containers that are read named one by one: a playlist that
poses as a video can fetch nothing. Sizes are read from the header before anything is decoded. All that is random comes from the
sample's own generator, so a sample looks the same on every rank and worker. Evaluation draws nothing: it takes the first caption,
and every window of a long recording.
"""

from collections.abc import Sequence

import numpy as np

from imp_ds.modalities.in_turn import in_turn
from imp_ds.modalities.media import BadSample, RawSample
from imp_ds.modalities.media_cache import MediaCache
from imp_ds.modalities.modality import Wanted, get_modality
from imp_ds.modalities.views import Augmentation, Views


def decode(
    raw: RawSample, views: Views, rng: np.random.Generator | None = None, cache: MediaCache | None = None, *,
    augment: Augmentation | None = None, wanted: Wanted = Wanted(),
) -> dict:  # fmt: skip
    """One sample, as `decode_all` gives it. Raises BadSample for what cannot be decoded and for what is missing."""
    (found,) = decode_all([raw], views, [rng], cache, augment=augment, wanted=wanted)
    if isinstance(found, BadSample):
        raise found
    return found


def decode_all(
    raws: Sequence[RawSample | BadSample], views: Views, rngs: Sequence[np.random.Generator | None],
    cache: MediaCache | None = None, *, augment: Augmentation | None = None, wanted: Wanted = Wanted(),
) -> list[dict | BadSample]:  # fmt: skip
    """The samples, each with what `Modality.decode` gives for each view, and "label": int where the source has one.

    Args:
        raws: what a reader gives; a BadSample stays what it is.
        rngs: each draws its sample's caption, clip or window and what `augment` changes. None draws nothing: the first caption,
            the middle clip, the whole recording.
        cache: keeps decoded media that do not depend on what is drawn.
        augment: what training changes at random; None: nothing.
        wanted: what else a sample must have to be of use, and how it is decoded.

    A sample that cannot be decoded, or lacks something, has a BadSample instead, and the others go on.
    """
    cache = MediaCache(0) if cache is None else cache
    augment = Augmentation() if augment is None else augment
    names = views.names()
    samples = in_turn(lambda raw: _begun(raw, names, wanted), raws)
    cheap = [name for name in names if get_modality(name).is_cheap]
    for name in [*cheap, *(name for name in names if name not in cheap)]:
        # nothing is decoded for a sample that is of no use already
        own = [sample if type(sample) is BadSample else raw[name] for sample, raw in zip(samples, raws, strict=True)]
        found = get_modality(name).decode(own, getattr(views, name), rngs, cache, augment, wanted)
        _put(name, samples, found)
    return samples


def decode_windows(raw: RawSample, views: Views, cache: MediaCache | None = None, wanted: Wanted = Wanted()) -> list[dict]:
    """The sample as often as its longest modality has windows of the view's length, one after another, the last one up to the
    end. Nothing is random. Raises BadSample as `decode` does."""
    cache = MediaCache(0) if cache is None else cache
    names = views.names()
    begun, found = _begun(raw, names, wanted), {}
    for name in sorted(names, key=lambda name: not get_modality(name).is_cheap):
        found[name] = get_modality(name).windows(raw[name], getattr(views, name), cache, wanted)
    # of several windows of one modality and one of another, the one is repeated
    most = max(map(len, found.values()), default=1)
    return [begun | {name: windows[min(place, len(windows) - 1)] for name, windows in found.items()} for place in range(most)]


def _begun(raw: RawSample, names: Sequence[str], wanted: Wanted) -> dict:
    """The sample with its label alone. Raises BadSample where something is missing, and for a label without a class."""
    for name in names:
        if (value := raw.get(name)) is None or isinstance(value, list) and not value:
            raise BadSample(get_modality(name).missing)
    if "label" not in raw:
        if wanted.label:
            raise BadSample("missing column")
        return {}
    label = int(raw["label"])
    if wanted.classes is not None and not 0 <= label < wanted.classes:
        raise BadSample("no such class", f"label {label}, of {wanted.classes} classes")
    return {"label": label}


def _put(name: str, samples: list[dict | BadSample], values: list) -> None:
    """Give the samples one more entry; a BadSample among the values, which stands there for one in `samples` too, takes the
    sample's place."""
    for place, value in enumerate(values):
        if type(value) is BadSample:
            samples[place] = value
        else:
            samples[place][name] = value
