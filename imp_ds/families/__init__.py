"""What the trainer knows of a kind of model: one package for each family, behind the protocol of `family.py`."""

from typing import TYPE_CHECKING

from imp_ds.errors import UserError
from imp_ds.registry import Registry

if TYPE_CHECKING:
    from imp_ds.families.family import ModelFamily

FAMILIES = Registry("family of models", {"imp": "imp_ds.families.imp.family", "uni_moe": "imp_ds.families.uni_moe.family"})


def register_family(family: type["ModelFamily"]) -> type["ModelFamily"]:
    """Make a family known, as a decorator of its class. Raises UserError for one that leaves something open, or whose name is
    taken."""
    from imp_ds.families.family import ModelFamily

    if missing := [name for name in ("kind", "Settings", "Model", "Processor") if not hasattr(family, name)]:
        got = f"no {', '.join(missing)}"
        raise UserError(f"the family of models {family.__name__} does not define all parts", got=got, fix="define them")
    if (named := family.Settings.model_fields["family"].default) != family.kind:
        raise UserError(f"the settings of {family.__name__} are of another family", got=named, allowed=family.kind)
    return FAMILIES.register(family, ModelFamily)


def family_of(run) -> "ModelFamily":
    """The family of a RunConfig's model. Raises UserError for one that nobody registered."""
    return FAMILIES[run.model.family]()
