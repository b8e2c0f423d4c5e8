"""Small shards, tables and lines of every kind that a source may be, and damage that reaches beyond their checksums."""

import csv
import io
import json
import tarfile
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from helpers.mutations import mutated
from imp_ds.config import DataSettings
from imp_ds.data.decoding import decode
from imp_ds.data.sources import captions, labels, open_reader
from imp_ds.modalities.media import BadSample
from imp_ds.modalities.messages.view import MessagesView
from imp_ds.modalities.text.view import TextView
from imp_ds.modalities.views import Views
from imp_ds.modalities.vision.view import VisionView
from imp_ds.tasks import Source

NAMES = ["cat", "dog", "fish"]
_ROWS = 6
_VIEWS = Views(vision=VisionView(height=8, width=8), text=TextView(length=8), messages=MessagesView())
# what parsers of texts, and of conversations, stumble over
WORDS = [
    b"null", b"NaN", b"-1", b"1e999", b"[" * 3000, b'{"a":' * 3000, b'"\\ud800"', b"\xff\xfe", b"\0", b'""', b"true", b"9" * 5000,
    b"../../x.png", b"/etc/passwd", b"file:///etc/passwd", b"\r", b"\n", b"\r\n", b'"', b"'", b",", b"\t", b"\xef\xbb\xbf", b"{}",
    b"[]", b"\xe2\x80\xa8", b"\x1b[2J", b"x" * 70_000, "²٣".encode(), b"0.0", b"\\", b"caption", b"label", b"file_name",
    b"<image>", b'"role":', b'"from":', b'"content":', b'"gpt"', b'"user"', b'"type":', b'"audio"', b'"data:image/png;base64,AA"',
]  # fmt: skip
_TEXT_ENDS = (".jsonl", ".csv", ".tsv", ".json", ".txt")


@cache
def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 30 * number).save(buffer, "PNG")
    return buffer.getvalue()


def _rows() -> list[dict]:
    names = [NAMES[number % 3] for number in range(_ROWS)]
    return [dict(file_name=f"{n}.png", label=name, caption=f'a {name}, "number {n}"') for n, name in enumerate(names)]


def tar_files() -> dict[str, bytes]:
    """Shards of each format of headers: pictures, captions and classes as members of their own or in a JSON object."""
    formats = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
    return {f"{name}.tar": tar_bytes(number, kind) for number, (name, kind) in enumerate(formats.items())}


@cache
def tar_bytes(shift: int = 0, kind: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for number, row in enumerate(_rows()):
            key = f"{number}" if number else "folder/" + "long" * (10 * (shift % 3)) + "ä"
            label = row["label"] if shift % 2 else str(NAMES.index(row["label"]))
            members = {"png": picture(number), "txt": row["caption"].encode(), "cls": label.encode()}
            members["json"] = json.dumps({"caption": row["caption"], "more": {"id": number}}).encode()
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def parquet_files() -> dict[str, bytes]:
    """Media as bytes or as {bytes, path}, captions alone or in lists, classes by name or index, packed in several ways."""
    rows, files = _rows(), {}
    pictures = [picture(number) for number in range(_ROWS)]
    for number, packing in enumerate(("none", "snappy", "zstd", "gzip")):
        media = [{"bytes": one, "path": "x.png"} for one in pictures] if number % 2 else pictures
        said = [[row["caption"], None] for row in rows] if number > 1 else [row["caption"] for row in rows]
        table = pa.table({"file_name": media, "caption": said, "label": [row["label"] for row in rows]})
        if number == 1:
            notes = {"huggingface": json.dumps({"info": {"features": {"label": {"names": NAMES, "_type": "ClassLabel"}}}})}
            table = table.set_column(2, "label", pa.array([n % 3 for n in range(_ROWS)])).replace_schema_metadata(notes)
        options = dict(row_group_size=4, use_dictionary=number != 3, data_page_version=["1.0", "2.0"][number % 2])
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression=packing, **options)
        files[f"{packing}.parquet"] = buffer.getvalue()
    return files


@cache
def line_files() -> dict[str, bytes]:
    """JSON lines, the list of the classes' names, and lines of text."""
    rows = [row if number % 2 else row | {"caption": [row["caption"], "another one"]} for number, row in enumerate(_rows())]
    texts = "".join(row["caption"] + "\n" for row in _rows())
    return {
        "metadata.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode(),
        "classes.json": json.dumps(NAMES).encode(), "texts.txt": texts.encode(),
    }  # fmt: skip


@cache
def conversation_files() -> dict[str, bytes]:
    """Conversations in their three spellings, and as the JSON of samples in a shard."""
    said = [row["caption"] for row in _rows()]
    parts = [[{"type": "image", "image": f"{n}.png"}, {"type": "text", "text": "what?"}] for n in range(_ROWS)]
    answer = lambda n: {"role": "assistant", "content": said[n], "loss": True}  # noqa: E731
    asked, media = {"role": "user", "content": "<image>, <image>?"}, {"images": ["0.png", "1.png"]}
    shares = [[{"from": "human", "value": "<image>\n?"}, {"from": "gpt", "value": said[n]}] for n in range(_ROWS)]
    spelled = {
        "chat-parts.jsonl": [{"chat": [{"role": "user", "content": parts[n]}, answer(n)]} for n in range(_ROWS)],
        "chat-tags.jsonl": [{"chat": [asked, answer(n)]} | media for n in range(_ROWS)],
        "chat-shares.jsonl": [{"chat": json.dumps(shares[n]), "image": f"{n}.png"} for n in range(_ROWS)],
    }  # fmt: skip
    files = {name: "".join(json.dumps(row) + "\n" for row in rows).encode() for name, rows in spelled.items()}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for n in range(_ROWS):
            for extension, data in (("json", json.dumps({"chat": shares[n]}).encode()), ("png", picture(n))):
                info = tarfile.TarInfo(f"{n}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return files | {"chat.tar": buffer.getvalue()}


def table_files() -> dict[str, bytes]:
    """CSV and TSV, with quoted delimiters and line ends; in the latter classes have numbers."""
    files = {}
    for name, delimiter in (("metadata.csv", ","), ("metadata.tsv", "\t")):
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, ["file_name", "label", "caption"], delimiter=delimiter)
        writer.writeheader()
        number = name.endswith(".tsv")
        rows = [row | {"label": NAMES.index(row["label"])} if number else row for row in _rows()]
        writer.writerows(row | {"caption": row["caption"] + "\nsecond line"} for row in rows)
        files[name] = buffer.getvalue().encode()
    return files


def index_files() -> dict[str, bytes]:
    """The index that stands beside a shard."""
    with tempfile.TemporaryDirectory() as folder:
        _lay(Path(folder), "shard.tar", tar_bytes())
        _open(Path(folder), Source(path="t", format="webdataset", text="txt"))
        return {"shard.idx": (Path(folder) / "t/train-shard.tar.idx").read_bytes()}


def mutated_source(name: str, data: bytes, rng: np.random.Generator) -> bytes:
    """As `mutated`, texts also by WORDS; in half of the shards the headers' checksums are made right again, in half of the
    Parquet files the footer is left whole."""
    if name.endswith(".parquet") and rng.random() < 0.5:
        begin = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
        pages = mutated(data[:begin], rng)[:begin]
        return pages + bytes(begin - len(pages)) + data[begin:]
    changed = mutated(data, rng, WORDS if name.endswith((*_TEXT_ENDS, ".tar")) else ())
    return _with_header_sums(changed) if name.endswith(".tar") and rng.random() < 0.5 else changed


def _with_header_sums(data: bytes) -> bytes:
    changed = bytearray(data)
    for at in range(0, len(changed) - 511, 512):
        if changed[at + 257 : at + 262] == b"ustar":
            total = sum(changed[at : at + 512]) - sum(changed[at + 148 : at + 156]) + 8 * 32
            changed[at + 148 : at + 156] = f"{total:06o}\0 ".encode()
    return bytes(changed)


def read_source(name: str, data: bytes, rng: np.random.Generator) -> None:
    """Open a source with this file, which builds its indexes, and read and decode its rows. Raises UserError where it is refused;
    rows that are bad are left out. A damaged index must change nothing."""
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        if name.endswith(".idx"):
            _lay(Path(folder), "shard.tar", tar_bytes())
            (Path(folder) / "t/train-shard.tar.idx").write_bytes(data)
            reader = _open(Path(folder), Source(path="t", format="webdataset", text="txt", vision="png"))
            found = [reader.read(row)["text"] for row in range(len(reader))]
            if found != [[row["caption"]] for row in _rows()]:
                raise AssertionError(f"a damaged index gave other rows: {found}")
            return
        _lay(Path(folder), name, data)
        held_out = {"test": 0.5} if rng.random() < 0.2 else {}
        reader = _open(Path(folder), _source(name, rng).model_copy(update={"holdout": held_out}))
        for row in range(min(len(reader), 3 * _ROWS)):
            _read_row(reader, row)
        if "label" in reader.source.roles():
            labels(reader)
        if {"text", "messages"} & {*reader.source.roles()}:
            list(captions(reader))


def _read_row(reader, row: int) -> None:
    try:
        reader.key(row)
        views = Views(**{role: getattr(_VIEWS, role) for role in reader.source.roles() if role != "label"})
        decode(reader.read(row), views)
    except BadSample:
        pass


def _lay(folder: Path, name: str, data: bytes) -> None:
    """The file in its place, and what belongs to it."""
    place = folder / "t" / "train"
    if name.endswith((".tar", ".parquet")):
        place.parent.mkdir()
        (folder / "t" / f"train-{name}").write_bytes(data)
        return
    place.mkdir(parents=True)
    if not name.endswith(".txt"):
        for number in range(_ROWS):
            (place / f"{number}.png").write_bytes(picture(number))
    if name == "classes.json":
        (place / "metadata.jsonl").write_bytes(line_files()["metadata.jsonl"])
        place = place.parent
    (place / name).write_bytes(data)


def _source(name: str, rng: np.random.Generator) -> Source:
    if name.startswith("chat"):
        kind = dict(format="webdataset", messages="json.chat") if name.endswith(".tar") else dict(messages="chat")
        return Source(path="t", splits={} if name.endswith(".tar") else {"train": f"train/{name}"}, **kind)
    names = NAMES if rng.random() < 0.5 else None
    if name.endswith(".tar"):
        text = ["txt", "json.caption"][int(rng.integers(2))]
        return Source(path="t", format="webdataset", vision="jpg;png", text=text, label="cls", label_names=names)
    if name.endswith(".txt"):
        return Source(path="t", text="text")
    known = "classes.json" if name == "classes.json" else names
    kind = "parquet" if name.endswith(".parquet") else "folder"
    return Source(path="t", format=kind, vision="file_name", text="caption", label="label", label_names=known)


def _open(folder: Path, source: Source):
    return open_reader(folder, source, "train", DataSettings(cache_dir=str(folder / "cache")))
