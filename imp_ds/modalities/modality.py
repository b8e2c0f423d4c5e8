"""What a modality is: one object that answers everything the rest of the program asks about it.

A subclass of `Modality` in a file or a package of its own, with a line in `imp_ds.registry.MODALITIES`, or `@register_modality`
on it in a module from outside, adds a modality to recipes, loading, models, planning, `data check`, `data show` and TensorBoard.

Shapes: B samples, L tokens of a sample, P raw values of a token, A axes of its positions.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Annotated, ClassVar, NamedTuple, Protocol

import numpy as np
from pydantic import AfterValidator
from torch import Tensor, nn

from imp_ds.costs import Kernel, passes, product
from imp_ds.errors import UserError
from imp_ds.modalities.decoding_settings import DEFAULTS, DecodingSettings
from imp_ds.modalities.media import BadSample, Media, RawSample
from imp_ds.records import Record
from imp_ds.registry import MODALITIES

TEXT = "text"
_LABEL = "label"  # the role of a row that is no modality
ModalityName = Annotated[str, AfterValidator(MODALITIES.known)]


def _not_text(name: str) -> str:
    if MODALITIES.known(name) == TEXT:
        raise ValueError(f"text itself; allowed: {', '.join(known for known in MODALITIES if known != TEXT)}")
    return name


ModalityBesideText = Annotated[str, AfterValidator(_not_text)]


class TextNeeds(NamedTuple):
    """What a task's objectives need of its texts.

    mask_rate: share of the words that are masked; mask_at_answer: whether a text has a mask token where the answer is read;
    target_ids: whether the token ids are wanted as targets, to be generated.
    """

    mask_rate: float = 0.0
    mask_at_answer: bool = False
    target_ids: bool = False


class Row(Protocol):
    """The row of a source that a field stands in."""

    def media(self, value=..., part: str = "") -> Media:
        """The media file that the field is or names, or another value of the row; `part` is added to its name where one field has
        several: ".0". Raises BadSample."""

    def beside(self, column: str):
        """The value of a column beside the field (`Modality.beside`): next to it in the same object, where the field is nested,
        or else in the row. None where there is none."""

    def column(self, name: str):
        """The value of any column; "": the name of the row's class. Raises BadSample where there is none."""

    def members(self) -> dict[str, object]:
        """Media that stand in the row under names of their own, as the members of a sample of a tar shard: name -> value."""


class Wanted(NamedTuple):
    """What a sample must have, beside what its views need, to be of use.

    label: a class at all; classes: one below this number.
    has_tokens: whether a caption has a token of the tokenizer, beside those around every text; None where that is not known.
    settings: how it is decoded, and how large it may be.
    conversation_tokens: how many tokens a decoded conversation has; None where that is not known.
    features: what towers have made of media, in place of the media (`imp_ds.data.media_features.FeatureCache`); None: nothing.
    """

    label: bool = False
    classes: int | None = None
    has_tokens: Callable[[str], bool] | None = None
    settings: DecodingSettings = DEFAULTS
    conversation_tokens: Callable[[list], int] | None = None
    features: object | None = None

    @classmethod
    def of(
        cls, task, settings: DecodingSettings, has_tokens: Callable[[str], bool] | None = None,
        conversation_tokens: Callable[[list], int] | None = None, features=None,
    ) -> "Wanted":  # fmt: skip
        """What an `imp_ds.tasks.Task` wants of its samples."""
        return cls(task.needs.label, task.needs.classes, has_tokens, settings, conversation_tokens, features)


class Preprocessed(NamedTuple):
    """The model's inputs of a batch, what is to be predicted of it, and the share of its tokens that is padding."""

    inputs: dict[str, np.ndarray]
    targets: dict[str, np.ndarray] = {}
    padding: float = 0.0


class Modality(ABC):
    """A modality. Class attributes:

    kind: its name in recipes, batches and models.
    what: what its samples are, in the plural: "images and videos".
    column: what a source's column of it holds.
    example: how a processor is called with a sample, for the model card: "images=[image]".
    missing: why a sample without it is left out, in two or three words.
    inputs: names of the model's inputs; the first is [B, L, ...], and the second, of a modality of patches, its positions.
    part: attribute of a processor that preprocesses it; None: an object of class `Processing` in the processor's `modalities`.
    item_kinds: what harnesses call an item of it: "image" or "video"; (): they have no name for it.
    is_standard: whether every model has it, whatever its tasks read.
    has_texts: whether a tokenizer is trained on its `captions`.
    names_a_file: whether a field of it is one media file, or the name of one.
    made_of: field of a source that says what its samples are made of, where no column of it is named; None: there is none.
    measures: what says how long a sample becomes, where samples differ: names of the numbers that `measure` gives.
    beside: further columns that are read with its own, where a row has them (`Row.beside`).
    is_cheap: whether decoding costs next to nothing: it is then done first, since it may show that a sample cannot be used.
    length_fact: the one of `facts` that is a sample's length in seconds, as a view's `seconds` is.
    shows_samples: whether people are shown decoded samples too (`parts`), beside what a batch holds of them.
    alters: what `Augmentation` may change of which captions may speak (see `changes`).

    View: what a task sets of how it sees the modality; Options: the numbers of a model, `{kind}_{field}` in its configuration;
    Settings: what is the same for all tasks, `data.{kind}`; Augmentation: what training may change at random.
    """

    kind: ClassVar[str]
    what: ClassVar[str]
    column: ClassVar[str]
    missing: ClassVar[str]
    example: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]]
    part: ClassVar[str | None] = None
    item_kinds: ClassVar[tuple[str, ...]] = ()
    is_standard: ClassVar[bool] = False
    has_texts: ClassVar[bool] = False
    names_a_file: ClassVar[bool] = True
    made_of: ClassVar[str | None] = None
    measures: ClassVar[tuple[str, ...]] = ()
    beside: ClassVar[tuple[str, ...]] = ()
    is_cheap: ClassVar[bool] = False
    View: ClassVar[type[Record]]
    Options: ClassVar[type[Record]] = Record
    Settings: ClassVar[type[Record]] = Record
    Augmentation: ClassVar[type[Record]] = Record
    Processing: ClassVar[type[Record]] = Record
    alters: ClassVar[tuple[str, ...]] = ()
    length_fact: ClassVar[str | None] = None
    shows_samples: ClassVar[bool] = False

    # from a source to the model

    def read(self, value, where: str, row: Row):
        """What a reader gives of a field: by default the media file that it is or names.

        Args:
            value: the field; where: what messages call it; row: that it stands in, with further columns and files.

        Raises BadSample.
        """
        return row.media()

    def made_columns(self, templates) -> list[str]:
        """The columns that the source's field `made_of` names."""
        raise NotImplementedError

    def make(self, templates, where: str, row: Row):
        """As `read`, of what the source's field `made_of` holds."""
        raise NotImplementedError

    def files(self, raw) -> list[Media]:
        """The media files of what `read` gave."""
        return [raw] if isinstance(raw, Media) else []

    def measure(self, raw) -> list[int]:
        """The `measures` of what `read` gave."""
        raise NotImplementedError

    def length(self, measured: list[int], part) -> int:
        """How many tokens a sample of these measures becomes, roughly; part: what the processor preprocesses it with."""
        raise NotImplementedError

    @abstractmethod
    def decode(self, raws: Sequence, view, rngs: Sequence[np.random.Generator | None], cache, augment, wanted: "Wanted") -> list:
        """What `read` gave of each sample, decoded as `view` says; a sample that cannot be decoded has a BadSample instead.

        Args:
            raws: a BadSample among them stays what it is.
            rngs: draw all that is random; None draws nothing.
            cache: a MediaCache, for what does not depend on what is drawn.
            augment: what training changes at random, with the fields of `Augmentation`.
            wanted: what else a sample must have, and `DecodingSettings`.
        """

    def windows(self, raw, view, cache, wanted) -> list:
        """The sample for evaluation, as often as it has windows of the view's length. Raises BadSample."""
        (sample,) = self.decode([raw], view, [None], cache, self.Augmentation(), wanted)
        if isinstance(sample, BadSample):
            raise sample
        return [sample]

    @abstractmethod
    def preprocess(
        self, samples: list, view, part, rngs: Sequence[np.random.Generator] | None, *, augment, text: TextNeeds,
        empty: Callable = np.empty,
    ) -> Preprocessed:  # fmt: skip
        """Decoded samples to the model's inputs.

        Args:
            part: what the processor preprocesses it with.
            rngs: one for each sample; None, as in evaluation: nothing is random, and no token is dropped.
            text: what is needed of texts.
            empty: makes large arrays, as `numpy.empty` does.
        """

    def processing(self, config, views: list, samples: Iterable) -> Record:
        """For a modality without a `part`: what preprocesses it, kept with the model.

        Args:
            config: of the model; views: of the run's evaluations and tasks; samples: some of the corpus, decoded.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither a part nor processing()")

    # in the model

    @abstractmethod
    def embedding(self, config) -> nn.Module:
        """The module from `inputs` to tokens: forward gives [B, L, D] and which of them are no padding, bool [B, L] or None."""

    def derive_options(self, views: list) -> dict:
        """Options of a model that follow from the views of its tasks, where the recipe does not set them. Raises UserError."""
        return {}

    def check_options(self, config) -> None:
        """Raise UserError for options that no model can have."""

    @abstractmethod
    def most_tokens(self, config) -> int:
        """Tokens of the largest sample that a model has positions for."""

    # what it costs

    @abstractmethod
    def tokens(self, view, config, settings, path: str) -> int:
        """Tokens of a sample before any is dropped. settings: `data.{kind}` of the run; path: of the view in the run, for errors.
        Raises UserError for a view that the model cannot take."""

    def registers(self, config) -> int:
        """Tokens that the embedding adds to those of each sample."""
        return 0

    def values(self, view, config) -> int:
        """Raw values that become one token; 0 where a token is looked up."""
        return 0

    @abstractmethod
    def kernels(self, config, tokens: int, values: int, value_bytes: int) -> list[Kernel]:
        """What the embedding of so many tokens of so many raw values runs, forward and backward."""

    # shown to people

    def facts(self, raw) -> dict[str, float]:
        """Numbers of a sample that `data check` shows the spread of, by name."""
        return {}

    def captions(self, raw) -> list[str]:
        """The texts of a sample, if it has some."""
        return []

    def pictures(self, inputs: dict[str, Tensor], view, part) -> dict[str, np.ndarray]:
        """The samples of a batch made visible: name -> uint8 [H, W, 3]."""
        return {}

    def parts(self, sample, view) -> list[tuple[str, object]]:
        """A decoded sample for people, where `shows_samples`, in its order: ("speaker", name), ("text", text), ("picture", uint8
        [H, W, 3]), ("waveform", (float [N] in [-1, 1], its rate))."""
        raise NotImplementedError

    def changes(self, augment) -> list[str]:
        """What an augmentation changes that captions may speak of, by the names of `alters`."""
        return []


class PatchModality(Modality):
    """A modality that is cut into patches of a grid, with positions on each axis; `Options` has `patch` and `max`, the largest
    sample, both in raw steps of each axis.

    axes: of the grid; copied: whether raw values are converted before their projection, which costs passes over them.
    """

    axes: ClassVar[int]
    copied: ClassVar[bool] = False

    def patch(self, config) -> tuple[int, ...]:
        return _as_tuple(getattr(config, f"{self.kind}_patch"))

    def largest(self, config) -> tuple[int, ...]:
        return _as_tuple(getattr(config, f"{self.kind}_max"))

    def buckets(self, config) -> list[int]:
        """Patches of the largest sample on each axis."""
        return [most // patch for most, patch in zip(self.largest(config), self.patch(config))]

    def most_tokens(self, config) -> int:
        return math.prod(self.buckets(config))

    def check_options(self, config) -> None:
        largest, patch, name = self.largest(config), self.patch(config), self.kind
        if min(*largest, *patch) < 1:
            raise UserError(
                f"{name}_max or {name}_patch is not positive", got=f"{[*largest]} and {[*patch]}", allowed="1 or more"
            )
        if any(a % b for a, b in zip(largest, patch)):
            raise UserError(f"{name}_max is not a multiple of {name}_patch", got=f"{[*largest]} and {[*patch]}")

    def count(self, size: tuple[int, ...], config, fields: list[str]) -> int:
        """Patches of a sample of `size`; `fields` of the run set each of its numbers. Raises UserError for a size that is no
        multiple of the patch, or larger than the largest."""
        patch, largest = self.patch(config), self.largest(config)
        if uneven := [field for field, a, b in zip(fields, size, patch) if a % b]:
            raise UserError(
                f"the {self.kind} view is not a multiple of the patch", got=_by(size), allowed=f"multiples of {_by(patch)}",
                fix=f"change {' and '.join(uneven)}, or model.{self.kind}_patch",
            )  # fmt: skip
        if large := [field for field, a, b in zip(fields, size, largest) if a > b]:
            raise UserError(
                f"the {self.kind} view is larger than the model's positions", got=_by(size), allowed=f"at most {_by(largest)}",
                fix=f"a smaller {' and '.join(large)}, or a larger model.{self.kind}_max",
            )  # fmt: skip
        return math.prod(a // b for a, b in zip(size, patch))

    @abstractmethod
    def grid(self, config, tokens: int, values: int) -> tuple[int, ...]:
        """The sizes of the axes of a sample of so many tokens of so many values. Raises UserError where they do not follow from
        the number."""

    def kernels(self, config, tokens: int, values: int, value_bytes: int) -> list[Kernel]:
        """The projection; positions are looked up on each axis, summed and normed."""
        width, axes = config.hidden_size, self.axes
        raw = passes("copy", (5 * tokens * values if self.copied else 0) * value_bytes, 3)
        positions = passes("copy", 7 * axes * tokens * width * value_bytes, 3 * axes)
        norm = passes("norm", 5 * tokens * width * value_bytes, 1)
        projected = product(tokens, values, width, value_bytes, input_gradient=False, of=("patch.",))
        return [projected, raw, positions, norm]


def files_of(sample: RawSample) -> dict[str, list[Media]]:
    """The media files of a row as a reader gives it, by role."""
    return {role: get_modality(role).files(value) for role, value in sample.items() if role != _LABEL}


def texts_of(sample: RawSample) -> list[str]:
    """The texts of a row as a reader gives it."""
    return [text for role, value in sample.items() if role != _LABEL for text in get_modality(role).captions(value)]


def register_modality(part: type[Modality]) -> type[Modality]:
    """A decorator: makes a modality known to recipes by its `kind`. Raises UserError as `Registry.register`."""
    return MODALITIES.register(part, Modality)


def standard_modalities() -> list[str]:
    """Those of every model."""
    return [name for name in MODALITIES if get_modality(name).is_standard]


@cache
def _of_class(part: type[Modality]) -> Modality:
    return part()


def get_modality(name: str) -> Modality:
    """The modality of that name. Raises UserError for an unknown one."""
    return _of_class(MODALITIES[name])


def part_of(processor, name: str):
    """What a processor preprocesses a modality with. Raises UserError for a modality that it does not know."""
    known = get_modality(name)
    found = getattr(processor, "modalities", {}).get(name) if known.part is None else getattr(processor, known.part, None)
    if found is None:
        raise UserError("the processor does not know this modality", got=name, fix="make the processor of a run that reads it")
    return found


def _as_tuple(value) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def _by(size) -> str:
    return " x ".join(map(str, size))
