"""What is compared with what: one modality, or several that are read together, as one sequence."""

from typing import Annotated

from pydantic import BeforeValidator

from imp_ds.registry import MODALITIES

JOINED = "+"  # between the modalities that are read together: "vision+audio"


def side_of(modalities) -> str:
    """The name of one modality or of several together, in the order of the registry, from such a name or a list. Raises UserError
    for an unknown one, ValueError for one that comes twice, and for what is neither."""
    if not isinstance(modalities, (str, list, tuple)):
        raise ValueError(f"a modality, or a list of those that are read together, got {modalities!r}")
    names = modalities.split(JOINED) if isinstance(modalities, str) else list(modalities)
    known = [MODALITIES.known(name) for name in names]
    if not known or len(set(known)) < len(known):
        raise ValueError(f"modalities that are read together, each once, got {modalities!r}")
    return JOINED.join(name for name in MODALITIES if name in known)


SideName = Annotated[str, BeforeValidator(side_of)]
