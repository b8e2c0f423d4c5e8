"""The keywords that the processor and its parts take: what nothing takes is refused by name."""

import inspect
from collections.abc import Callable, Iterable, Mapping

from imp_ds.errors import UserError
from imp_ds.overrides import nearest


def keywords_of(call: Callable) -> list[str]:
    """The names that a call takes by keyword, without its inputs (the first parameter)."""
    parameters = list(inspect.signature(call).parameters.values())[1:]
    return [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]


def check_keywords(where: str, given: Iterable[str], allowed: Iterable[str]) -> None:
    """Raise UserError for the first keyword that is not allowed."""
    allowed = list(allowed)
    for name in given:
        if name not in allowed:
            raise UserError(f"unknown keyword of {where}", got=name, allowed=nearest(name, allowed))


def sort_keywords(groups: Mapping[str, dict | None], flat: Mapping, allowed: Mapping[str, list[str]]) -> dict[str, dict]:
    """The keywords of each group: those of its own dictionary, and of the flat ones those that it takes.

    Args:
        groups: {"images_kwargs": its dictionary or None, ..}.
        flat: keywords that were given beside the dictionaries; each goes to every group that takes it.
        allowed: the names that each group takes.

    Raises:
        UserError: a keyword that no group takes, one in a group that does not take it, or one that is given both ways.
    """
    check_keywords("the processor", flat, [*groups, *dict.fromkeys(name for names in allowed.values() for name in names)])
    sorted_by_group = {}
    for group, own in groups.items():
        if not isinstance(own, (dict, type(None))):
            raise UserError(f"{group} is no dictionary", got=repr(own)[:100], allowed=", ".join(allowed[group]))
        check_keywords(group, own or {}, allowed[group])
        twice = sorted(set(own or {}) & set(flat))
        if twice:
            raise UserError("a keyword is given twice", got=f"{twice[0]} in {group} and beside it", fix="leave one of them out")
        sorted_by_group[group] = {**{name: value for name, value in flat.items() if name in allowed[group]}, **(own or {})}
    return sorted_by_group
