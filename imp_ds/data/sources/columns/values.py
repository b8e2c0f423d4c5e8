"""What the columns of a row may hold: a caption or several, a class by index or name."""

import math
import unicodedata

from imp_ds.data.samples import BadSample
from imp_ds.terminal.printable import is_text

_MOST_LABEL = 2**31
_MOST_DIGITS = 4000  # Python makes no number of more than 4,300


def captions(value, where: str) -> list[str]:
    """The captions of a value that is one or a list of them; None, blank ones and those without a visible character are passed
    over.

    Raises BadSample("wrong column") for another value, or one that is no Unicode text, and BadSample("no text") when nothing is
    left.
    """
    found = [value] if isinstance(value, str) or value is None else value
    if not isinstance(found, list) or not all(caption is None or isinstance(caption, str) for caption in found):
        raise BadSample("wrong column", f"{where} is neither a caption nor a list of captions: {shown(value)}")
    found = [caption for caption in found if caption and is_visible(caption)]
    if not found:
        raise BadSample("no text", where)
    if not all(map(is_text, found)):
        raise BadSample("wrong column", f"{where} is no Unicode text, but has half of a surrogate pair: {shown(value)}")
    return found


def is_visible(text: str) -> bool:
    """Whether any of its characters is more than a space, a control character, or a format character such as U+200B."""
    return any(not character.isspace() and unicodedata.category(character) not in ("Cc", "Cf") for character in text)


def label(value, places: dict[str, int] | None, where: str) -> int:
    """The class index of a value that is one (3, 3.0, true), or the name of a class.

    Args:
        places: the index of each class name; None when the source names no classes.

    Raises BadSample("no label") where none is given: None, not a number (a gap of a column of floats), or a text without a
    visible character; BadSample("no such class") and BadSample("wrong column").
    """
    is_gap = value is None or isinstance(value, float) and math.isnan(value)
    if is_gap or isinstance(value, str) and not is_visible(value) and value not in (places or ()):
        raise BadSample("no label", where)
    if isinstance(value, str):
        if places is None:
            raise BadSample("wrong column", f"{where} is no class index, and source.label_names lists no names: {shown(value)}")
        if value not in places:
            raise BadSample("no such class", f"{where}: {shown(value)}")
        return places[value]
    if isinstance(value, bool) or isinstance(value, float) and value.is_integer():  # a column with gaps is one of floats
        value = int(value)
    if not isinstance(value, int):
        raise BadSample("wrong column", f"{where} is not a class index: {shown(value)}")
    if not 0 <= value < (_MOST_LABEL if places is None else len(places)):
        raise BadSample("no such class", f"{where}: {value}" + (f" of {len(places)} classes" if places else ""))
    return value


def written_label(text: str, places: dict[str, int] | None) -> int | str:
    """What text stands for where a file has no numbers: a class name where it is one, else an index if it looks like one."""
    text = text.strip()
    is_index = text.isdecimal() and len(text) <= _MOST_DIGITS and not (places is not None and text in places)
    return int(text) if is_index else text


def shown(value) -> str:
    """A value in a message: not more than its beginning."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
