"""A user's text as it may stand on a terminal or a page: names of files, keys of samples and captions come from anybody.

A control character could move the cursor, colour, or forge a line; one half of a surrogate pair (a file name that is not UTF-8)
could not be written at all.
"""

import re

# C0 and C1 controls, line and paragraph separators, what turns the direction of text, halves of surrogate pairs
_FORGING = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(value: object, lines: bool = False) -> str:
    """The text of a value in which such characters are written as Python writes them: \\n, \\x1b, \\udcff. Twice is as once.

    Args:
        lines: the line ends stay: for a text that has several lines of its own.
    """
    return _FORGING.sub(lambda found: "\n" if lines and found[0] == "\n" else repr(found[0])[1:-1], str(value))


def is_text(value: str) -> bool:
    """Whether it is Unicode text, which a file can hold: it has no half of a surrogate pair."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
