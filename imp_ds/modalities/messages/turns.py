"""Conversations made of the columns of a table, by a template for each turn, the user's and the assistant's by turns.

["<image>{question}", "{answer}"]                            one question about each image, and its answer
[["<image>Describe it.", "<image>What is there?"], "{captions}"]    one of several wordings, one of a list of captions
["<audio:recording>Which word is it?", "{}"]                 the file of a column of another name; the name of the class
"""

import re
from itertools import groupby
from typing import Protocol

from imp_ds.modalities.media import BadSample, shown
from imp_ds.modalities.messages.spellings import KINDS, fill_media, read_conversation
from imp_ds.modalities.text.captions import is_visible

Turns = list[list[str]]  # of each turn its wordings
CLASS_NAME = ""  # the column of {}

_PIECES = re.compile(rf"(\{{[^{{}}]*\}}|<(?:{'|'.join(KINDS)}):[^<>]+>)")
_TAGS = re.compile(rf"<({'|'.join(KINDS)})(?::[^<>]+)?>")
_PLAIN = re.compile(rf"<({'|'.join(KINDS)})>")
_ROLES = ("user", "assistant")


class ColumnsRow(Protocol):
    """A `imp_ds.modalities.modality.Row` whose columns can be asked for."""

    def column(self, name: str):
        """The value of a column; CLASS_NAME: the name of the row's class. Raises BadSample where there is none."""


def columns_of(turns: Turns) -> list[str]:
    """The columns that templates name."""
    pieces = (piece for turn in turns for template in turn for piece in _PIECES.split(template))
    return list(dict.fromkeys(name for piece in pieces if (name := _column(piece))))


def check_turns(turns: list[str | list[str]]) -> Turns:
    """The turns, each as its wordings. Raises ValueError for what makes no conversation."""
    turns = [[turn] if isinstance(turn, str) else turn for turn in turns]
    if len(turns) % 2:
        raise ValueError(f"turns of the user and the assistant by turns, which end with an answer; got {len(turns)}")
    for number, wordings in enumerate(turns, start=1):
        if not wordings or not all(is_visible(template) for template in wordings):
            raise ValueError(f"turn {number} is empty; a template is such as '<image>{{question}}'")
        if any(_TAGS.findall(template) != _TAGS.findall(wordings[0]) for template in wordings):
            raise ValueError(f"turn {number}: its wordings have not the same media in the same order: {', '.join(wordings)}")
    return turns


def make_conversation(turns: Turns, where: str, row: ColumnsRow) -> list[dict]:
    """As `read_conversation` gives it; a turn of which there are several wordings has the others under "others": contents with
    the same media. Raises BadSample where a column is empty, or holds no text."""
    made = [_contents(turn, f"{where}, turn {number}", row) for number, turn in enumerate(turns, start=1)]
    first = [{"role": _ROLES[number % 2], "content": contents[0]} for number, contents in enumerate(made)]
    conversation = read_conversation(first, where, _Beside(row, first))
    for number, (turn, contents) in enumerate(zip(conversation, made), start=1):
        if len(contents) > 1:
            turn["others"] = [fill_media(content, turn["content"], f"{where}, turn {number}") for content in contents[1:]]
    return conversation


class _Beside:
    """A row of which those columns of media alone stand beside the conversation whose tags are in it."""

    def __init__(self, row, turns: list[dict]):
        texts = (part for turn in turns for part in turn["content"] if isinstance(part, str))
        self._tags = {kind for text in texts for kind in _PLAIN.findall(text)}
        self.media, self.members, self._row = row.media, row.members, row

    def beside(self, column: str):
        return self._row.beside(column) if column.removesuffix("s") in self._tags else None


def _column(piece: str) -> str:
    """The column that a piece of a template names; "" for a text, and for {}."""
    if piece.startswith("{"):
        return piece[1:-1]
    return piece[1:-1].partition(":")[2] if _PIECES.fullmatch(piece) else ""


def _contents(turn: list[str], where: str, row: ColumnsRow) -> list[list]:
    """The contents that a turn may have: lists of texts and parts."""
    return [content for template in turn for content in _filled(template, where, row)]


def _filled(template: str, where: str, row: ColumnsRow) -> list[list]:
    """One content, or one for each entry of the list that a column holds."""
    pieces, several = [], 1
    for piece in filter(None, _PIECES.split(template)):
        if not _PIECES.fullmatch(piece):
            pieces.append([piece])
        elif piece.startswith("{"):
            pieces.append(_texts(row.column(piece[1:-1]), f"{where}, {piece}"))
        else:
            kind, _, column = piece[1:-1].partition(":")
            pieces.append([{"type": kind, kind: _medium(row.column(column), f"{where}, {piece}")}])
        if len(pieces[-1]) > 1 and several > 1:
            raise BadSample("wrong column", f"{where}: two lists in one template: {template}")
        several = max(several, len(pieces[-1]))
    contents = [[piece[number % len(piece)] for piece in pieces] for number in range(several)]
    return [_joined(content) for content in contents]


def _joined(content: list) -> list:
    """Texts next to each other as one."""
    runs = [(is_text, list(run)) for is_text, run in groupby(content, key=lambda piece: isinstance(piece, str))]
    return [part for is_text, run in runs for part in (["".join(run)] if is_text else run)]


def _texts(value, where: str) -> list[str]:
    """The text of a column, or those of its list that can be seen."""
    texts = [_text(one, where) for one in (value if isinstance(value, list) else [value])]
    if not (found := [text for text in texts if is_visible(text)]):
        raise BadSample("empty turn", f"{where}: the column is empty")
    return found


def _text(value, where: str) -> str:
    if value is None or isinstance(value, float) and value != value:  # a gap
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    if not isinstance(value, (str, int)):
        raise BadSample("wrong column", f"{where} is no text: {shown(value)}")
    return str(value)


def _medium(value, where: str):
    if value is None or value == "":
        raise BadSample("missing file", f"{where}: the column is empty")
    return value
