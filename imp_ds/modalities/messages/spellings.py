"""Conversations in the spellings that rows have, read into one form.

A row holds a list of turns, or its JSON, in one of these spellings:

    {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What is it?"}]}
    {"role": "user", "content": "<image>What is it?"}     and a column `images`, or `image`, beside it
    {"from": "human", "value": "<image>What is it?"}      likewise

In texts <image>, <video> and <audio> stand for the next medium of the row; so does a part that names none. A line break next to
such a tag separates it from the text, and is left out.

What they are read into is a list of {"role": "system" | "user" | "assistant", "content": [part, ...]}, with "loss": False where
an answer is not to be learned, and contents as "others" where a turn has more wordings; a part is {"type": "text", "text": str},
or {"type": kind, kind: Media} for a kind of KINDS.
"""

import base64
import binascii
import re
from collections import Counter
from collections.abc import Mapping
from hashlib import blake2b

from imp_ds.errors import UserError
from imp_ds.json_files import parse_json
from imp_ds.modalities.media import BadSample, Media, shown
from imp_ds.terminal.printable import is_text

KINDS = ("image", "video", "audio")
_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
_TEXTS = ("text", "input_text", "output_text")
_MEDIA = {spelling: kind for kind in KINDS for spelling in (kind, f"{kind}_url", f"input_{kind}")}
_TAGS = re.compile(rf"\n?<({'|'.join(KINDS)})>\n?")
_NEXT = None  # in place of a part's source: the next medium of the row
SUFFIXES = {  # of files, and of members of a tar sample, that are media of a kind
    "image": {"png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff", "avif", "heic", "ppm"},
    "video": {"mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "flv", "wmv", "3gp"},
    "audio": {"wav", "flac", "ogg", "opus", "mp3", "m4a", "aac", "aif", "aiff"},
}


def read_conversation(value, where: str, row) -> list[dict]:
    """The conversation of a field, with its media not opened yet.

    Args:
        row: `imp_ds.modalities.modality.Row`.

    Raises BadSample for another spelling, for tags and media that do not match in number, and for a conversation in which there
    is nothing to be learned.
    """
    turns = [_turn(turn, f"{where}, turn {number}") for number, turn in enumerate(_turns(value, where), start=1)]
    conversation = [turn for turn in turns if turn is not None]
    if not conversation:
        raise BadSample("empty conversation", where)
    if not any(turn["role"] == "assistant" and turn.get("loss", True) for turn in conversation):
        raise BadSample("no assistant turn", f"{where}: turns of {', '.join(turn['role'] for turn in conversation)}")
    sources = _matching_sources(conversation, where, row)
    for number, turn in enumerate(conversation):
        for place, part in enumerate(turn["content"]):
            kind = part["type"]
            if kind in KINDS:
                name, source = (f".{number}.{place}", part[kind]) if part[kind] is not _NEXT else next(sources[kind])
                part[kind] = _media(source, name, f"{where}, turn {number + 1}", row)
    return conversation


def fill_media(content: list, like: list[dict], where: str) -> list[dict]:
    """The parts of another wording of a turn: of texts with tags and parts, with the media of `like`, its parts, in their order.
    Raises BadSample where they are not as many."""
    parts = [one for part in content for one in _parts(part, where)]
    media = [part for part in like if part["type"] in KINDS]
    kinds, found = ([part["type"] for part in several if part["type"] in KINDS] for several in (media, parts))
    if kinds != found:
        raise BadSample(
            "media do not match", f"{where}: {', '.join(found) or 'none'} in one wording, {', '.join(kinds) or 'none'}"
        )
    new = iter(media)
    return [next(new) if part["type"] in KINDS else part for part in parts]


def media_of(conversation: list[dict]) -> list[tuple[str, object]]:
    """(kind, medium) of each medium of a conversation, in their order."""
    parts = (part for turn in conversation for part in turn["content"])
    return [(part["type"], part[part["type"]]) for part in parts if part["type"] in KINDS]


def text_of(conversation: list[dict]) -> str:
    """What is said in a conversation, with a line for each part."""
    return "\n".join(part["text"] for turn in conversation for part in turn["content"] if part["type"] == "text")


def _turns(value, where: str) -> list:
    if isinstance(value, str):
        try:
            value = parse_json(value, where, list)
        except UserError as error:
            raise BadSample("bad JSON", error.one_line) from None
    if isinstance(value, Mapping):  # columns instead of rows: how `datasets` gives a sequence of objects
        columns = [column for column in value.values() if isinstance(column, list)]
        value = [dict(zip(value, cells)) for cells in zip(*columns)] if len(columns) == len(value) else value
    if value is None:
        raise BadSample("empty conversation", where)
    if not isinstance(value, list):
        raise BadSample("wrong column", f"{where} is no list of turns: {shown(value)}")
    return value


def _turn(turn, where: str) -> dict | None:
    """A turn, in which a medium is what names it, or _NEXT; None for an empty system prompt."""
    if not isinstance(turn, Mapping):
        raise BadSample("wrong column", f"{where} is no object with role and content, or from and value: {shown(turn)}")
    is_share = turn.get("from") is not None
    given, content = (turn["from"], turn.get("value")) if is_share else (turn.get("role"), turn.get("content"))
    role = _ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        raise BadSample("unknown role", f"{where}: {shown(given)}; known are {', '.join(_ROLES)}")
    parts = content if isinstance(content, list) else [] if content is None else [content]
    found = [one for part in parts for one in _parts(part, where)]
    if not found:
        if role == "system":
            return None
        raise BadSample("empty turn", f"{where}, of the {role}")
    loss = turn.get("loss")
    if loss is not None and not isinstance(loss, bool):
        raise BadSample("wrong column", f"{where}: loss is true or false, not {shown(loss)}")
    return {"role": role, "content": found} | ({"loss": False} if loss is False else {})


def _parts(part, where: str) -> list[dict]:
    """What a part of a turn's content stands for: several where tags stand in its text."""
    if isinstance(part, str):
        return _split(part, where)
    given = {name: value for name, value in part.items() if value is not None} if isinstance(part, Mapping) else {}
    kind = given.get("type")
    if kind in _TEXTS and isinstance(given.get("text"), str):
        return _split(given["text"], where)
    if not isinstance(kind, str) or kind not in _MEDIA:
        known = f"known are text, {', '.join(_MEDIA)}"
        raise BadSample("unknown part type", f"{where}: {shown(kind if isinstance(part, Mapping) and kind else part)}; {known}")
    name = _MEDIA[kind]
    keys = (key for key in (kind, name, f"{name}_url", "path", "url") if key in given)
    return [{"type": name, name: next((given[key] for key in keys), _NEXT)}]


def _split(text: str, where: str) -> list[dict]:
    if not is_text(text):
        raise BadSample("wrong column", f"{where} is no Unicode text, but has half of a surrogate pair: {shown(text)}")
    pieces = _TAGS.split(text)  # text, kind, text, kind, ..., text
    return [
        {"type": piece, piece: _NEXT} if number % 2 else {"type": "text", "text": piece}
        for number, piece in enumerate(pieces) if piece
    ]  # fmt: skip


def _matching_sources(conversation: list[dict], where: str, row) -> dict[str, object]:
    """kind -> an iterator of (name, source) of the media that stand beside the conversation. Raises BadSample where they are not
    as many as the tags."""
    wanted, found = Counter(kind for kind, source in media_of(conversation) if source is _NEXT), {}
    for kind in KINDS:
        sources, named = _beside(kind, row)
        if len(sources) != wanted[kind] and (named or wanted[kind]):
            got = f"{len(sources)} in {named or f'no column {kind}s'}"
            raise BadSample("media do not match", f"{where}: wanted {wanted[kind]} for its <{kind}>, got {got}")
        found[kind] = iter(sources)
    return found


def _beside(kind: str, row) -> tuple[list[tuple[str, object]], str | None]:
    """The media of a kind that a row has beside a conversation, and the column that lists them: else they are members."""
    for column in (f"{kind}s", kind):
        if (value := row.beside(column)) is not None:
            return [(f".{column}.{number}", one) for number, one in enumerate(_listed(value))], column
    members = row.members().items()
    return [(f".{name}", value) for name, value in members if name.rpartition(".")[2].lower() in SUFFIXES[kind]], None


def _listed(value) -> list:
    """The media that a column lists: a list, its JSON in the cell of a table, one of them, or an empty cell."""
    if isinstance(value, str) and value.startswith("["):
        try:
            return parse_json(value, "a cell", list)
        except UserError:
            pass  # the name of a file may begin so
    return value if isinstance(value, list) else [value] if value != "" else []


def _media(source, name: str, where: str, row) -> Media:
    """The medium that a part or a column names or is. Raises BadSample."""
    if isinstance(source, Mapping) and source.get("bytes") is None:
        if isinstance(source.get("data"), str):  # {"data": BASE64, "format": "wav"}, as OpenAI writes audio
            return _inline(source["data"], str(source.get("format") or ""), where)
        source = source["url"] if source.get("url") is not None else source
    if isinstance(source, str) and source.startswith("data:"):  # data:image/png;base64,...
        head, _, content = source.partition(",")
        return _inline(content, head.partition("/")[2].partition(";")[0], where)
    return row.media(source, name)


def _inline(content: str, suffix: str, where: str) -> Media:
    try:
        data = base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadSample("wrong column", f"{where}: not base64: {error}") from None
    suffix = suffix if suffix.isalnum() else ""
    return Media(f"inline-{blake2b(data, digest_size=16).hexdigest()}.{suffix}".rstrip("."), data=data)
