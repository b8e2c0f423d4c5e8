"""A small corpus of which a tenth is broken, in twelve kinds and more, and a loader of it."""

import io
import json
import os
import tarfile

import numpy as np
import soundfile
from PIL import Image

from helpers.media_files import bomb, write_video
from helpers.small_loader import processor
from imp_ds.config import DataSettings
from imp_ds.data.loading.collation import Collator
from imp_ds.data.loading.loader import RotatingLoader
from imp_ds.data.loading.step_batches import StepBatches
from imp_ds.data.sources import open_reader
from imp_ds.modalities.audio.view import AudioView
from imp_ds.modalities.text.view import TextView
from imp_ds.modalities.views import Views
from imp_ds.modalities.vision.view import VisionView
from imp_ds.objectives import Classification, Contrastive
from imp_ds.tasks import Source, Task
from imp_ds.train.schedule import build_schedule

SHARDS = Source(path="shards", format="webdataset", vision="png", text="json.caption", label="cls", label_names=["a", "b"])
MEDIA = Source(path="media", audio="file_name", text="caption", label="label")
TASKS = [
    Task(name="pictures", source=SHARDS, batch_size=8, views=Views(vision=VisionView(height=32, width=32), text=TextView()),
         objectives=[Contrastive(pairs=[("vision", "text")], positives="equal")]),
    Task(name="sounds", source=MEDIA, batch_size=8, views=Views(audio=AudioView(seconds=0.32)),
         objectives=[Classification(modality="audio", num_classes=2)]),
]  # fmt: skip


def picture(i: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), i, np.uint8)).save(out, "PNG")
    return out.getvalue()


def add(tar, name: str, data: bytes, **fields) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(data))


# number of a sample -> what is wrong with it, and the reason that is to be reported
BROKEN_SHARD = {
    3: (dict(png=picture(3)[:50]), "unreadable image"),  # cut in the middle
    17: (dict(png=b"GIF89a, or not"), "unreadable image"),  # of another type than it says
    20: (dict(png=b""), "empty"),
    31: (dict(png=bomb("x.png")), "too large"),  # 100,000 x 100,000
    40: (dict(json=b'{"caption": '), "bad JSON"),
    55: (dict(json=b'{"title": "x"}'), "missing column"),
    58: (dict(json=b'{"caption": 7}'), "wrong column"),
    61: (dict(cls=b"c"), "no such class"),
    70: (dict(png=None), "missing column"),
    75: ("link", "unsafe name"),
    78: ("leads out", "unsafe name"),
}
BROKEN_MEDIA = {
    2: "missing file", 9: "unsafe name", 14: "unreadable audio", 21: "unreadable audio", 30: "no such class", 38: "no audio",
    39: "bad JSON",
}  # fmt: skip


def write_shards(folder) -> None:
    folder.mkdir()
    for shard in (0, 1):
        with tarfile.open(folder / f"train-{shard}.tar", "w") as tar:
            for i in range(shard * 40, shard * 40 + 40):
                wrong = BROKEN_SHARD.get(i, ({}, None))[0]
                key = f"../{i:03d}" if wrong == "leads out" else f"{i:03d}"
                if wrong == "link":
                    add(tar, f"{key}.png", b"", type=tarfile.SYMTYPE, linkname="/etc/hostname")
                    continue
                caption = json.dumps(dict(caption=f"number {i}")).encode()
                fields = dict(png=picture(i), json=caption, cls=b"ab"[i % 2 : i % 2 + 1])
                for extension, data in (fields | (wrong if isinstance(wrong, dict) else {})).items():
                    if data is not None:
                        add(tar, f"{key}.{extension}", data)


def write_media(folder) -> None:
    folder.mkdir(parents=True)
    lines = []
    for i in range(40):
        name, label = f"{i}.wav", i % 2
        tone = np.sin(np.arange(5120) * (i + 1) / 50).astype(np.float32) / 2
        soundfile.write(folder / name, tone, 16000, subtype="FLOAT")
        if i == 2:
            (folder / name).unlink()
        if i == 9:
            (folder / name).unlink()
            os.symlink("/etc/hostname", folder / name)
        if i == 14:
            soundfile.write(folder / name, np.full(5120, np.nan, np.float32), 16000, subtype="FLOAT")
        if i == 21:
            (folder / name).write_bytes((folder / name).read_bytes()[:30])
        if i == 30:
            label = -1
        if i == 38:
            name = "38.mp4"
            write_video(folder / name, np.zeros((3, 32, 32, 3), np.uint8))
        lines.append("{" if i == 39 else json.dumps(dict(file_name=name, label=label, caption=f"tone {i}")))
    # the last row is looked at when the source is opened: a good one stands there
    order = [39, *range(39)]
    (folder / "metadata.jsonl").write_text("".join(lines[i] + "\n" for i in [order[1], order[0], *order[2:]]))


def loader(root, stop_step, workers=0, rank=0, world=1, window=65536) -> RotatingLoader:
    data = DataSettings(root=str(root), cache_dir=str(root / "cache"))
    readers = {task.name: [open_reader(root, task.source, "train", data)] for task in TASKS}
    schedule = build_schedule("rotation", TASKS, 0)
    shape = dict(seed=3, rank=rank, world=world, window=window, cache_mb=0)
    batches = StepBatches(TASKS, schedule, readers, Collator(processor()), **shape)
    return RotatingLoader(batches, stop_step=stop_step, workers=workers, timeout_s=60)
