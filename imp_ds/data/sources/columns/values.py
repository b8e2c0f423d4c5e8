"""What a column of classes may hold: an index or a name."""

import math

from imp_ds.modalities.media import BadSample, shown
from imp_ds.modalities.text.captions import is_visible

_MOST_LABEL = 2**31
_MOST_DIGITS = 4000  # Python makes no number of more than 4,300


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
