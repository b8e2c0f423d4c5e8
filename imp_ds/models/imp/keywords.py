"""The keywords that the processor and its parts take, by group: what nothing takes is refused by name."""

from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any, TypedDict, get_args

import numpy as np
from transformers.processing_utils import ProcessingKwargs

from imp_ds.errors import UserError
from imp_ds.overrides import nearest

COMMON = "common_kwargs"
_KINDS = {bool: (bool, np.bool_), int: Integral, float: Real, str: str, type(None): type(None)}
_ABOVE_ZERO = ("max_length", "frames", "stride", "seconds")


class ImpTextKwargs(TypedDict, total=False):
    """`max_length` pads and cuts the texts to that many tokens (None: to the length of training); `padding` and `truncation` are
    those of Hugging Face tokenizers. `answer_mask` is for tasks whose answer is read at a mask: each text has one, where it says
    [MASK], else at its end."""

    max_length: int | None
    padding: bool | str | None
    truncation: bool | str | None
    answer_mask: bool | None
    return_tensors: str | None


class ImpImageProcessorKwargs(TypedDict, total=False):
    """`size`, `keep_aspect`, `naflex` and `drop_rate` are those of a task's view, `rng` draws what is random.

    do_resize: False keeps the pictures' own size, one for all of them and a multiple of the patch.
    do_rescale, rescale_factor, do_normalize, image_mean, image_std: the values times the factor, less the mean, by the spread, as
        float32. The model does so itself with uint8 values, and takes floats as they are: what both switches give by their
        stored numbers is the same to it.
    do_convert_rgb: False refuses pictures that are not RGB already.
    input_data_format: "channels_first" or "channels_last" of arrays; None: by their shape.
    """

    size: Any
    do_resize: bool | None
    keep_aspect: bool | None
    naflex: bool | None
    do_rescale: bool | None
    rescale_factor: float | None
    do_normalize: bool | None
    image_mean: Any
    image_std: Any
    do_convert_rgb: bool | None
    input_data_format: str | None
    drop_rate: float | None
    rng: Any
    return_tensors: str | None


class ImpVideoProcessorKwargs(ImpImageProcessorKwargs, total=False):
    """Those of images, for each frame. `frames` are taken as `sampling` and `stride` say, the names of a task's view;
    `do_sample_frames=False` takes all that a video has: one number for all videos, 1 or a multiple of the patch's frames."""

    frames: int | None
    sampling: str | None
    stride: int | None
    do_sample_frames: bool | None


class ImpAudioKwargs(TypedDict, total=False):
    """`sampling_rate` is that of arrays, one number or one for each; `seconds` and `crop` override what is stored; `drop_rate`
    and `rng` are for training. `padding` changes nothing: a recording always has `seconds`, by silence at its end."""

    sampling_rate: Any
    padding: bool | str | None
    seconds: float | None
    crop: str | None
    drop_rate: float | None
    rng: Any
    return_tensors: str | None


class ImpProcessorKwargs(ProcessingKwargs, total=False):
    """The groups; a keyword may also stand beside them, for every group that takes it."""

    text_kwargs: ImpTextKwargs
    images_kwargs: ImpImageProcessorKwargs
    videos_kwargs: ImpVideoProcessorKwargs
    audio_kwargs: ImpAudioKwargs


GROUPS = {name: list(ImpProcessorKwargs.__annotations__[name].__annotations__) for name in (
    "text_kwargs", "images_kwargs", "videos_kwargs", "audio_kwargs"
)}  # fmt: skip
GROUPS[COMMON] = ["return_tensors"]


def check_names(where: str, given: Iterable[str], allowed: Iterable[str]) -> None:
    """Raise UserError for the first keyword that is not allowed."""
    allowed = list(allowed)
    for name in given:
        if name not in allowed:
            raise UserError(f"unknown keyword of {where}", got=name, allowed=nearest(name, allowed))


def check_keywords(where: str, given: Mapping[str, Any], taken: type) -> None:
    """Raise UserError for the first keyword that is none of `taken`, a TypedDict, or whose value is not of its kind."""
    check_names(where, given, taken.__annotations__)
    for name, value in given.items():
        kinds = get_args(taken.__annotations__[name])
        is_one = not kinds or any(_is_of(value, kind) for kind in kinds)
        if not is_one or (name in _ABOVE_ZERO and value is not None and not value > 0):
            allowed = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
            allowed += ", above 0" if name in _ABOVE_ZERO else ""
            raise UserError(f"a value that {name} of {where} cannot have", got=repr(value)[:100], allowed=allowed)


def _is_of(value, kind: type) -> bool:
    is_flag = isinstance(value, _KINDS[bool])
    return is_flag if kind is bool else isinstance(value, _KINDS[kind]) and not is_flag


def sort_keywords(given: Mapping[str, Any]) -> dict[str, dict]:
    """The keywords of each group of GROUPS: those of its own dictionary, of the flat ones those that it takes, and the common
    ones that neither says.

    Args:
        given: dictionaries by the names of groups, and keywords beside them.

    Raises:
        UserError: a keyword that no group takes, one in a group that does not take it, or one that is given both ways.
    """
    flat = {name: value for name, value in given.items() if name not in GROUPS}
    check_names("the processor", flat, [*GROUPS, *dict.fromkeys(name for names in GROUPS.values() for name in names)])
    found = {}
    for group, allowed in GROUPS.items():
        own = given.get(group)
        if not isinstance(own, (dict, type(None))):
            raise UserError(f"{group} is no dictionary", got=repr(own)[:100], allowed=", ".join(allowed))
        own = own or {}
        check_names(group, own, allowed)
        twice = sorted(name for name in own if name in flat and (group != COMMON or own[name] != flat[name]))
        if twice:
            raise UserError("a keyword is given twice", got=f"{twice[0]} in {group} and beside it", fix="leave one of them out")
        found[group] = {**{name: value for name, value in flat.items() if name in allowed}, **own}
    common = found.pop(COMMON)
    return {group: {**common, **own} for group, own in found.items()}
