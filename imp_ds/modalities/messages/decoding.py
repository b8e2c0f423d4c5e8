"""The media of conversations, decoded: whole, at their own size, without anything random but the wording of a turn.

Shapes: T frames, H height, W width, N samples of audio.
"""

from functools import partial

import numpy as np

from imp_ds.errors import UserError
from imp_ds.modalities.audio.recordings import open_recording
from imp_ds.modalities.audio.resampling import resample
from imp_ds.modalities.media import BadSample, Media
from imp_ds.modalities.media_cache import MediaCache
from imp_ds.modalities.messages.features import MediaFeatures
from imp_ds.modalities.messages.spellings import KINDS, text_of
from imp_ds.modalities.messages.view import MessagesView
from imp_ds.modalities.vision.clips import read_clips
from imp_ds.modalities.vision.image import read_image
from imp_ds.modalities.vision.view import VisionAugmentation, VisionView

_OWN_SIZE = 1 << 20  # pixels: nothing is decoded at less than its own size to come nearer to it


def decode_conversation(
    raw: list[dict], view: MessagesView, rng: np.random.Generator | None, cache: MediaCache, wanted
) -> list[dict]:
    """What `read_conversation` gave, with images as uint8 [H, W, 3], videos as uint8 [T, H, W, 3] of `view.frames` frames at
    most, audio as float32 [N] at `view.sampling_rate`; or with MediaFeatures in place of media.

    Args:
        rng: draws the wording of a turn that has several; None: the first.
        wanted: `imp_ds.modalities.modality.Wanted`.

    Raises BadSample for media that cannot be decoded, and a conversation that is longer than the view.
    """
    raw = [_worded(turn, rng) for turn in raw]
    most, characters = wanted.settings.caption_characters, len(text_of(raw))
    if characters > most:
        raise BadSample("too large", f"a conversation of {characters} characters, more than {most}")
    decoded = partial(_decoded, view=view, cache=cache, wanted=wanted)
    conversation = [turn | {"content": [decoded(part) for part in turn["content"]]} for turn in raw]
    if wanted.conversation_tokens is not None and (tokens := wanted.conversation_tokens(conversation)) > view.length:
        raise BadSample("too long", f"{tokens} token ids, media among them, more than views.messages.length = {view.length}")
    return conversation


def _worded(turn: dict, rng: np.random.Generator | None) -> dict:
    """A turn with one of its wordings alone."""
    contents = [turn["content"], *turn.get("others", [])]
    own = {name: value for name, value in turn.items() if name != "others"}
    return own | {"content": contents[0 if rng is None or len(contents) == 1 else rng.integers(len(contents))]}


def decode_medium(kind: str, media: Media, view: MessagesView, cache: MediaCache, settings) -> np.ndarray:
    """A medium of a kind of KINDS, as `decode_conversation` has it. Raises BadSample."""
    return _DECODERS[kind](media, view, cache, settings)


def _decoded(part: dict, view: MessagesView, cache: MediaCache, wanted) -> dict:
    kind = part["type"]
    if kind not in KINDS:
        return part
    if wanted.features is not None and kind in wanted.features.kinds:
        return {"type": kind, kind: _features(kind, part[kind], view, cache, wanted)}
    return {"type": kind, kind: decode_medium(kind, part[kind], view, cache, wanted.settings)}


def _features(kind: str, media: Media, view: MessagesView, cache: MediaCache, wanted) -> MediaFeatures:
    """What a tower made of a medium, from `imp_ds.data.media_features`. Raises BadSample for a medium of which nothing can be
    made, and UserError for one whose features are no longer there."""

    def read() -> np.ndarray:
        found_NLS = wanted.features.read(kind, media, view)
        if found_NLS is None:
            decode_medium(kind, media, view, MediaCache(0), wanted.settings)
            raise UserError(
                "the features of a medium are not in their cache", got=media.name,
                fix="raise data.messages.feature_cache_gb, and start again with --resume auto: they are computed anew",
            )  # fmt: skip
        return found_NLS

    return cache.get((media.name, "features", kind, view.frames, view.sampling_rate), read).view(MediaFeatures)


def _image(media: Media, view: MessagesView, cache: MediaCache, settings):
    return cache.get((media.name, "own size"), partial(read_image, media, settings=settings))


def _video(media: Media, view: MessagesView, cache: MediaCache, settings):
    clip_view = VisionView(frames=view.frames, height=_OWN_SIZE, width=_OWN_SIZE)
    (clip_THW3,) = read_clips([media], clip_view, [None], cache, VisionAugmentation(), settings)
    if isinstance(clip_THW3, BadSample):
        raise clip_THW3
    return clip_THW3


def _audio(media: Media, view: MessagesView, cache: MediaCache, settings):
    def read():
        return resample(*open_recording(media, settings).samples(), view.sampling_rate)

    return cache.get((media.name, "audio", view.sampling_rate), read)


_DECODERS = {"image": _image, "video": _video, "audio": _audio}
