"""What the trainer knows of a kind of model: one package for each family, behind the protocol of `family.py`."""

from importlib import import_module
from typing import TYPE_CHECKING

from imp_ds.errors import UserError

if TYPE_CHECKING:
    from imp_ds.families.family import ModelFamily

_HOMES = {"imp": "imp_ds.families.imp.family"}  # the module that registers each family of this package
_FAMILIES: dict[str, "ModelFamily"] = {}


def register_family(name: str, family: "ModelFamily") -> None:
    """Make a family known under the name that its settings have as `family`."""
    _FAMILIES[name] = family


def family_of(run) -> "ModelFamily":
    """The family of a RunConfig's model. Raises UserError for one that nobody registered."""
    name = run.model.family
    if name in _HOMES:
        import_module(_HOMES[name])
    if name not in _FAMILIES:
        fix = "import the module that registers it (imp_ds.families.register_family)"
        raise UserError("unknown family of models", got=name, allowed=", ".join({**_HOMES, **_FAMILIES}), fix=fix)
    return _FAMILIES[name]
