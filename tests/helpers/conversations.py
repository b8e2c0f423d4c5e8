"""Twenty conversations with images, videos and audio, written in every spelling and format that is read."""

import io
import json
import tarfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from PIL import Image

from helpers.media_files import write_video

KINDS = ("image", "video", "audio")
SUFFIX = {"image": "png", "video": "mp4", "audio": "wav"}
SOURCES = {  # how each is read: the fields of a Source beside its path
    "parts": dict(messages="messages"),
    "tags": dict(messages="messages"),
    "shares": dict(messages="conversations"),
    "parquet": dict(messages="messages", format="parquet"),
    "webdataset": dict(messages="json.conversations", format="webdataset"),
    "huggingface": dict(messages="messages", format="huggingface"),
}


def conversations(count=20):
    """Turns as (role, parts), where a part is a text or (kind, number of a file): every kind alone, several of one kind, mixed
    order, a system prompt, follow-up turns, and text alone."""
    found = []
    for n in range(count):
        media = [[("image", n)], [("audio", n)], [("video", n)], [("image", n), ("image", n + 1)], []][n % 5]
        turns = [("user", [*media, f"what is {n}?"]), ("assistant", [f"it is {n}."])]
        if n % 2:
            turns += [("user", ["and this? ", ("audio", n + 1), " or this? ", ("image", n + 2)]), ("assistant", ["both.\nyes."])]
        found.append([("system", ["be brief."]), *turns] if n % 3 == 0 else turns)
    return found


def media_in(turns):
    """kind -> numbers of the files, in their order."""
    parts = [part for _, content in turns for part in content if isinstance(part, tuple)]
    return {kind: [number for of, number in parts if of == kind] for kind in KINDS}


def file_of(kind, number):
    """Its bytes: a picture of 6 + number columns, a video of 3 frames, a tone at 8 kHz."""
    out = io.BytesIO()
    if kind == "image":
        Image.fromarray(np.full((8, 6 + number, 3), 10 * number % 256, np.uint8)).save(out, "PNG")
    elif kind == "audio":
        tone = 0.5 * np.sin(2 * np.pi * (number + 1) * 100 * np.arange(800 + 100 * number) / 8000)
        soundfile.write(out, tone.astype(np.float32), 8000, format="WAV")
    return out.getvalue()


class Files:
    """The media of all conversations, made once: (kind, number) -> bytes."""

    def __init__(self, folder):
        self.made, folder = {}, folder / "made"
        folder.mkdir()
        for turns in conversations():
            for kind, numbers in media_in(turns).items():
                for number in numbers:
                    if (kind, number) not in self.made:
                        if kind == "video":
                            frames = np.full((3, 16, 16, 3), 0, np.uint8) + np.uint8([[[[10 * number % 256]]]])
                            write_video(folder / "a.mp4", frames)
                            self.made[kind, number] = (folder / "a.mp4").read_bytes()
                        else:
                            self.made[kind, number] = file_of(kind, number)

    def bytes(self, kind, number):
        return self.made[kind, number]


def name_of(kind, number):
    return f"media/{number}.{SUFFIX[kind]}"


def as_parts(turns):
    def part(one):
        return {"type": "text", "text": one} if isinstance(one, str) else {"type": one[0], one[0]: name_of(*one)}

    return [{"role": role, "content": [part(one) for one in content]} for role, content in turns]


def as_tags(turns, role="role", content="content", names=None):
    text = lambda parts: "".join(one if isinstance(one, str) else f"<{one[0]}>" for one in parts)  # noqa: E731
    return [{role: (names or {}).get(who, who), content: text(parts)} for who, parts in turns]


def as_shares(turns):
    return as_tags(turns, "from", "value", {"user": "human", "assistant": "gpt"})


def columns(turns, value):
    """images, videos, audios: those that there are, as `value` makes them of (kind, number)."""
    return {f"{kind}s": [value(kind, number) for number in numbers] for kind, numbers in media_in(turns).items() if numbers}


def write_all(root):
    """Every spelling under its name in `root`, split train."""
    files = Files(root)
    lines = {
        "parts": [{"messages": as_parts(turns)} for turns in conversations()],
        "tags": [{"messages": as_tags(turns)} | columns(turns, name_of) for turns in conversations()],
        "shares": [{"conversations": as_shares(turns)} | columns(turns, name_of) for turns in conversations()],
    }
    for name, rows in lines.items():
        folder = root / name / "train"
        (folder / "media").mkdir(parents=True)
        for kind, number in files.made:
            (folder / name_of(kind, number)).write_bytes(files.bytes(kind, number))
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _write_tables(root, files)
    _write_shards(root / "webdataset", files)
    return root


def _write_tables(root, files):
    """Parquet, and a data set of Hugging Face, with the bytes of the media."""
    struct = lambda kind, number: {"bytes": files.bytes(kind, number), "path": None}  # noqa: E731
    empty = {f"{kind}s": [] for kind in KINDS}
    rows = [{"messages": as_tags(turns)} | empty | columns(turns, struct) for turns in conversations()]
    (root / "parquet").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), root / "parquet" / "train-0.parquet", row_group_size=7)
    features = datasets.Features({
        "messages": datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
        "images": datasets.List(datasets.Image()), "videos": datasets.List(datasets.Video()),
        "audios": datasets.List({"bytes": datasets.Value("binary"), "path": datasets.Value("string")}),
    })  # fmt: skip
    rows = datasets.Dataset.from_list(rows, features=features)
    datasets.DatasetDict({"train": rows}).save_to_disk(root / "huggingface")


def _write_shards(folder, files):
    """A sample's JSON, and its media as further members, in their order."""
    folder.mkdir()
    with tarfile.open(folder / "train-0.tar", "w") as tar:
        for row, turns in enumerate(conversations()):
            members = {"json": json.dumps({"conversations": as_shares(turns)}).encode()}
            for kind, numbers in media_in(turns).items():
                members |= {f"{k}.{SUFFIX[kind]}": files.bytes(kind, number) for k, number in enumerate(numbers)}
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{row:03}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
