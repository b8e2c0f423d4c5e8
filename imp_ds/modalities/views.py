"""The records of a task that have a field for each modality: how samples are seen, what training changes of them."""

from functools import lru_cache

from pydantic import Field
from pydantic.fields import FieldInfo

from imp_ds.errors import UserError
from imp_ds.modalities.modality import get_modality
from imp_ds.records import OpenRecord, annotation_of, field
from imp_ds.registry import MODALITIES


class Views(OpenRecord):
    """One view for each modality that a task uses; a modality without a view is not decoded."""

    weight: float = Field(1.0, gt=0, description="relative probability, where a task lists several views")

    @classmethod
    def more_fields(cls) -> dict[str, FieldInfo]:
        """A view of each modality."""
        return _views(tuple(MODALITIES))

    def names(self) -> list[str]:
        """The modalities that have a view, in the order of the registry."""
        return [name for name in MODALITIES if getattr(self, name) is not None]


class Augmentation(OpenRecord):
    """What training changes at random, the same whichever rank or worker decodes the sample. The defaults change nothing."""

    @classmethod
    def more_fields(cls) -> dict[str, FieldInfo]:
        """The fields of all modalities' own `Augmentation`."""
        return _augmentations(tuple(MODALITIES))


def columns() -> dict[str, FieldInfo]:
    """A source's column of each modality."""
    return _columns(tuple(MODALITIES))


def data_settings() -> dict[str, FieldInfo]:
    """What a modality has to set for all tasks together, where it has something."""
    return _settings(tuple(MODALITIES))


def model_options() -> dict[str, FieldInfo]:
    """The numbers of a model that each modality has: `{modality}_{option}`."""
    return _options(tuple(MODALITIES))


def alterations(augment: Augmentation) -> list[str]:
    """What an augmentation changes that captions may speak of."""
    return [changed for name in MODALITIES for changed in get_modality(name).changes(augment)]


def known_alteration(name: str) -> str:
    """The name itself. Raises UserError for what no modality's augmentation changes."""
    known = [changed for kind in MODALITIES for changed in get_modality(kind).alters]
    if name not in known:
        raise UserError("no augmentation changes this", got=name, allowed=", ".join(known))
    return name


# One dictionary for each set of modalities that are registered: a record asks for it at every attribute.


@lru_cache
def _views(names: tuple[str, ...]) -> dict[str, FieldInfo]:
    return {name: field(get_modality(name).View | None, None, f"of {get_modality(name).what}") for name in names}


@lru_cache
def _columns(names: tuple[str, ...]) -> dict[str, FieldInfo]:
    return {name: field(str | None, None, get_modality(name).column) for name in names}


@lru_cache
def _augmentations(names: tuple[str, ...]) -> dict[str, FieldInfo]:
    found = {}
    for name in names:
        own = get_modality(name).Augmentation.model_fields
        if taken := sorted(set(own) & set(found)):
            raise UserError("two modalities have an augmentation of one name", got=taken[0], fix=f"rename that of {name}")
        found |= own
    return found


@lru_cache
def _settings(names: tuple[str, ...]) -> dict[str, FieldInfo]:
    kinds = {name: get_modality(name).Settings for name in names}
    return {
        name: field(kind, kind(), f"of {get_modality(name).what}, the same for all tasks")
        for name, kind in kinds.items() if kind.model_fields
    }  # fmt: skip


@lru_cache
def _options(names: tuple[str, ...]) -> dict[str, FieldInfo]:
    return {
        f"{name}_{option}": field(annotation_of(info) | None, None, info.description)
        for name in names for option, info in get_modality(name).Options.model_fields.items()
    }  # fmt: skip
