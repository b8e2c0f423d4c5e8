"""What a recipe sets of its model: a record of the family that it names.

Shapes of a run's model differ from family to family, so `RunConfig.model` is the record of one of them, given by `family`.
"""

from abc import ABC, abstractmethod
from importlib import import_module
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field, SerializeAsAny

from imp_ds.overrides import nearest
from imp_ds.records import Record
from imp_ds.tasks import Task

DEFAULT = "imp"
HOMES = ["imp_ds.families.imp.settings", "imp_ds.families.uni_moe.settings"]  # of the families of this package


class FamilySettings(Record, ABC):
    """The settings of a model in a recipe. A family is a subclass with a `family` of its own.

    kinds: those that there are, by family: a subclass is there as soon as its module is imported.
    """

    kinds: ClassVar[dict[str, type["FamilySettings"]]] = {}
    family: str = Field(description="which kind of model this is")

    @classmethod
    def __pydantic_init_subclass__(cls, **arguments):
        super().__pydantic_init_subclass__(**arguments)
        FamilySettings.kinds[cls.model_fields["family"].default] = cls

    @abstractmethod
    def to_config(self, vocab_size: int, tasks: list[Task], tokenizer=None):
        """The model's configuration. tokenizer: the run's; without it a model can be built and measured, but not trained where
        its tasks have texts of their own. Raises UserError when the settings contradict each other."""


def _settings(value):
    """A record from a dictionary whose "family" names it, or the record itself."""
    if not isinstance(value, dict):
        return value
    family = value.get("family", DEFAULT)
    if not isinstance(family, str) or family not in FamilySettings.kinds:
        allowed = nearest(family, FamilySettings.kinds) if isinstance(family, str) else ", ".join(FamilySettings.kinds)
        imported = "or what a module registers that the recipe or --import MODULE imports"
        raise ValueError(f"unknown family of models: {family!r}; allowed: {allowed}, {imported}")
    return FamilySettings.kinds[family].model_validate(value)


def default_settings() -> FamilySettings:
    """Those of a recipe that sets nothing of its model."""
    return _settings({})


for _home in HOMES:
    import_module(_home)

AnyModelSettings = Annotated[SerializeAsAny[FamilySettings], BeforeValidator(_settings)]
