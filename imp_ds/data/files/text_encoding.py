"""In which encoding tables, JSON lines and captions are: UTF-8, or what the first bytes of a file announce.

UTF-16 and UTF-32 are read where a byte order mark says so. Nothing is guessed: a file that is in Latin-1 would give other letters
in silence if it were taken for Windows-1250.
"""

import codecs
from pathlib import Path
from typing import BinaryIO

from imp_ds.errors import UserError
from imp_ds.modalities.media import BadSample

_BLOCK = 1 << 20  # bytes looked at together
# the longer marks first: that of UTF-32 begins as that of UTF-16
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"), (codecs.BOM_UTF8, "utf-8-sig"),
)  # fmt: skip
_FEW = 2  # lines that are not UTF-8: one alone may be damage


def announced(beginning: bytes) -> str | None:
    """The encoding that a byte order mark announces, None where there is none."""
    return next((encoding for mark, encoding in _MARKS if beginning.startswith(mark)), None)


def decoded(text: bytes, where: str) -> str:
    """A text in UTF-8, or as its mark says. Raises BadSample("wrong column")."""
    try:
        return text.decode(announced(text[:4]) or "utf-8")
    except UnicodeDecodeError as error:
        said = f"{error.reason} at byte {error.start}: {text[error.start : error.start + 8]!r}"
        raise BadSample("wrong column", f"{where} is not UTF-8: {said}") from None


def write_utf8(text: BinaryIO, encoding: str, name: str, path: Path) -> None:
    """Write what is in `encoding` as UTF-8, without a mark. Raises UserError for what is not in it."""
    text.seek(0)
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        with open(path, "wb") as out:
            while block := text.read(_BLOCK):
                out.write(decoder.decode(block).encode("utf-8", "surrogatepass"))
            out.write(decoder.decode(b"", final=True).encode("utf-8"))
    except UnicodeError as error:
        raise UserError(
            f"{name} is not in the encoding that its first bytes announce", got=f"{encoding}: {error}",
            fix="save it anew, as UTF-8",
        ) from None  # fmt: skip


def check_utf8(text: BinaryIO, name: str) -> None:
    """Raise UserError for a file whose lines are in another encoding: several lines are not UTF-8, and next to none that has
    more than ASCII is. A damaged line in a file of UTF-8 is left to who reads it. The file is read to its end."""
    text.seek(0)
    decoder, first = codecs.getincrementaldecoder("utf-8")(), True
    try:
        while block := text.read(_BLOCK):
            if first and block.count(0) > len(block) // 4:
                raise _other(name, "every other byte is zero, as in UTF-16 without a byte order mark", "UTF-16LE")
            decoder.decode(block)
            first = False
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        _check_lines(text, name)


def _check_lines(text: BinaryIO, name: str) -> None:
    text.seek(0)
    foreign, good, shown = 0, 0, ""
    for number, line in enumerate(text, start=1):
        if line.isascii():
            continue
        try:
            line.decode("utf-8")
            good += 1
        except UnicodeDecodeError as error:
            shown = shown or f"line {number} has {line[max(0, error.start - 12) : error.start + 12]!r}"
            foreign += 1
    if foreign >= _FEW and foreign > 10 * good:
        raise _other(name, f"{foreign} lines are not UTF-8: {shown}", "WINDOWS-1252")


def _other(name: str, got: str, likely: str) -> UserError:
    return UserError(
        f"{name} is not in UTF-8", got=got, allowed="UTF-8, or UTF-16 and UTF-32 that begin with a byte order mark",
        fix=f"save it as UTF-8, or convert it: iconv -f {likely} -t UTF-8 OLD > NEW, with the encoding that it was written in",
    )  # fmt: skip
