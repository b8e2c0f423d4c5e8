"""Media whose bytes stand in a row itself: as bytes, or as the {bytes, path} of Hugging Face."""

from collections.abc import Mapping
from pathlib import PurePosixPath

from imp_ds.data.sources.named_files import NamedFiles
from imp_ds.data.sources.rows import no_field
from imp_ds.modalities.media import BadSample, Media, shown

_KNOWN = {
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aac",
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp",
}  # fmt: skip
# how files begin: offset, bytes, suffix of their kind
_BEGINNINGS = (
    (0, b"\xff\xd8\xff", ".jpg"), (0, b"\x89PNG", ".png"), (0, b"GIF8", ".gif"), (0, b"BM", ".bmp"), (0, b"II*\0", ".tif"),
    (0, b"MM\0*", ".tif"), (8, b"WEBP", ".webp"), (8, b"WAVE", ".wav"), (8, b"AVI ", ".avi"), (0, b"fLaC", ".flac"),
    (0, b"OggS", ".ogg"), (0, b"ID3", ".mp3"), (0, b"\xff\xfb", ".mp3"), (0, b"\xff\xf3", ".mp3"), (4, b"ftypM4A", ".m4a"),
    (4, b"ftypqt", ".mov"), (4, b"ftyp", ".mp4"), (0, b"\x1aE\xdf\xa3", ".mkv"), (0, b"FLV", ".flv"),
)  # fmt: skip


def embedded(value, name: str, where: str, beside: NamedFiles | None) -> Media:
    """The image, video or audio of a field: bytes, {bytes, path}, or the name of a file.

    Args:
        name: what the media are called, without a suffix.
        where: the field, for messages.
        beside: where files that are named lie; None: none may be named.

    Raises BadSample.
    """
    path = None
    if isinstance(value, Mapping):
        path, value = value.get("path"), value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if value is None:
        raise BadSample("empty", where)
    if isinstance(value, str) and beside is not None:
        return beside.media(value, where)
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise no_field(value, where) if not isinstance(value, str) else BadSample("unsafe name", f"{where}: {shown(value)}")
    data = bytes(value)
    return Media(f"{name}{suffix_of(data, path)}", data=data)


def suffix_of(data: bytes, path: str | None = None) -> str:
    """The suffix of a file name, if it gives the kind, or else the one that the first bytes give; "" when neither does."""
    suffix = PurePosixPath(path).suffix.lower() if isinstance(path, str) else ""
    if suffix in _KNOWN:
        return suffix
    return next((kind for offset, start, kind in _BEGINNINGS if data[offset : offset + len(start)] == start), "")
