"""What a tar file holds and where, from its headers alone: POSIX ustar and pax, GNU and old tar. Nothing is unpacked.

`tarfile` reads the same (the tests compare the two), but takes four times as long for each member, which counts in shards of
millions. The format: POSIX.1-2024, pax, "ustar Interchange Format" and "pax Header Block"; GNU tar manual, "Basic Tar Format".
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

_BLOCK = 512
_REGULAR = (b"0", b"\0", b"7")
_FOLDER = b"5"
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes: their size field counts for nothing
_SPARSE = b"S"
_LONG_NAME, _LONG_LINK = b"L", b"K"
_PAX = (b"x", b"X")
_MOST_EXTRA = 1 << 20  # bytes of a long name or a pax header


class Member(NamedTuple):
    """An entry: its name, where its bytes begin, how many they are, and whether it is a "file", a "folder" or of "other" kind."""

    name: str
    offset: int
    size: int
    kind: str


class Damaged(Exception):
    """Where a header should be is none: what comes after it cannot be found."""


def members(number: int) -> Iterator[Member]:
    """Every entry of the tar file with this file descriptor, in order; the last may reach past the end of a file that was cut.

    Raises Damaged where a header is cut or is none.
    """
    end, at, stated = os.fstat(number).st_size, 0, {}
    while at < end:
        header = os.pread(number, _BLOCK, at)
        if len(header) < _BLOCK:
            raise Damaged(f"it ends inside the header at byte {at}")
        if header[0] == 0 and not any(header):
            return  # the end, after which anything may stand
        if not _sum_is_right(header):
            raise Damaged(f"there is no tar header at byte {at}")
        kind, size, begin = header[156:157], _number(header[124:136], at), at + _BLOCK
        if kind == _LONG_NAME or kind in _PAX:
            stated |= _extra(kind, _bytes(number, begin, size), at)
        elif kind not in (_LONG_LINK, b"g"):
            size = stated.get("size", size)
            begin = _past_map(number, begin, header) if kind == _SPARSE else begin
            name = stated.get("name") or _name(header)
            yield Member(name, begin, size, _kind(kind, name, stated))
            size, stated = 0 if kind in _WITHOUT_DATA else size, {}
        at = begin + (size + _BLOCK - 1) // _BLOCK * _BLOCK


def _sum_is_right(header: bytes) -> bool:
    try:
        return sum(header) - sum(header[148:156]) + 8 * 32 == int(header[148:156].strip(b" \0") or b"0", 8)
    except ValueError:
        return False


def _number(field: bytes, at: int) -> int:
    """Octal digits, or, after a byte of 128, an integer in base 256."""
    try:
        number = int.from_bytes(field[1:], "big") if field[0] == 128 else int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 62:
        raise Damaged(f"the header at byte {at} gives no size")
    return number


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0" and header[345]:  # GNU's own magic ends in spaces, and other things stand there
        name = header[345:500].split(b"\0", 1)[0] + b"/" + name
    return os.fsdecode(name)


def _kind(kind: bytes, name: str, stated: dict) -> str:
    if kind in _REGULAR and not stated.get("sparse"):
        return "folder" if name.endswith("/") else "file"
    return "folder" if kind == _FOLDER else "other"


def _extra(kind: bytes, data: bytes, at: int) -> dict:
    """What a long name or a pax header gives of the next entry: "name", "size", whether it is "sparse"."""
    if kind == _LONG_NAME:
        return {"name": os.fsdecode(data.split(b"\0", 1)[0])}
    stated = {}
    while data:
        length, space, _ = data.partition(b" ")
        if not space or not length.isdigit() or not len(length) + 2 < int(length) <= len(data):
            break  # padding
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        if key == b"path":
            stated["name"] = os.fsdecode(value)
        elif key == b"size":
            stated["size"] = _decimal(value, at)
        elif key.startswith(b"GNU.sparse."):
            stated["sparse"] = True
        data = data[int(length) :]
    return stated


def _decimal(value: bytes, at: int) -> int:
    if not value.isdigit() or len(value) > 18:
        raise Damaged(f"the header at byte {at} gives no size")
    return int(value)


def _past_map(number: int, begin: int, header: bytes) -> int:
    """Where the data of an old GNU sparse file begin: after further blocks of its map."""
    more = header[482]
    while more:
        block = _bytes(number, begin, _BLOCK)
        more, begin = block[504], begin + _BLOCK
    return begin


def _bytes(number: int, begin: int, size: int) -> bytes:
    data = os.pread(number, min(size, _MOST_EXTRA), begin)
    if len(data) < size:
        raise Damaged(f"it ends inside a header, or a header is longer than {_MOST_EXTRA} bytes, at byte {begin}")
    return data
