"""The corpora of benchmarks/loader.py: tar shards of images, videos and recordings, which all its contestants can read.

The photographs, videos and recordings of the real corpus, packed as they are; the recordings once more as FLAC and MP3; and its
photographs enlarged to 500 x 375, with detail laid over them, so that their JPEGs are as large as those of a camera.
"""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import soundfile
from PIL import Image

from imp_ds.modalities.audio.view import AudioView
from imp_ds.modalities.views import Augmentation, Views
from imp_ds.modalities.vision.view import VisionView
from imp_ds.objectives import Classification
from imp_ds.tasks import Source, Task

SHARDS = 4
ENLARGED = 512  # photographs
_TEXTURES = 16  # that they share
_FLIPPED_CROPS = Augmentation(crop_area=(0.5, 1.0), flip=True)


class Corpus(NamedTuple):
    """What is fed: shards whose samples are NAME.{extension} and NAME.cls, as a task sees them, in patches of its model."""

    name: str
    shards: list[Path]
    extension: str
    task: Task
    patch: tuple[int, int, int] = (4, 4, 4)


def photograph(height: int, width: int, seed: int = 0) -> Image.Image:
    """Something with the spectrum of a picture: noise that falls with the frequency."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]) + 1 / max(height, width)
    planes = [np.fft.ifft2(np.fft.fft2(rng.normal(size=(height, width))) / frequency).real for _ in range(3)]
    pixels = np.stack([(plane - plane.min()) / np.ptp(plane) * 255 for plane in planes], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def corpora(real: Path, folder: Path) -> Iterator[Corpus]:
    """Written below `folder`; `real` has images/, videos/ and audio/ as the recipe `real_small` reads them."""
    small, large = VisionView(height=32, width=32), VisionView(height=256, width=256)
    film = VisionView(frames=16, height=32, width=32, sampling="clip", stride=2)
    waveform = dict(vision=None, audio=AudioView(seconds=0.96), batch_size=32)
    images, waveforms = list(_images(real)), list(_waveforms(real))
    yield _corpus("images, 32 x 32", folder, "jpg", images, vision=small, batch_size=64)
    enlarged = _enlarged(images[:: len(images) // ENLARGED][:ENLARGED])
    yield _corpus("images, 500 x 375", folder, "jpg", enlarged, vision=large, batch_size=32, patch=(4, 16, 16))
    yield _corpus("films, 64 x 64", folder, "mp4", _videos(real), vision=film, batch_size=16)
    yield _corpus("sounds, wav", folder, "wav", waveforms, **waveform)
    for extension in ("flac", "mp3"):
        yield _corpus(f"sounds, {extension}", folder, extension, _recoded(waveforms, extension), **waveform)


def _corpus(name: str, folder: Path, extension: str, samples: Iterable, *, batch_size: int, patch=(4, 4, 4), **views) -> Corpus:
    place = folder / name.replace(", ", "_").replace(" ", "")
    shards = _write(place, extension, samples)
    modality = "audio" if views.get("audio") else "vision"
    task = Task(
        name="task", views=Views(**views), batch_size=batch_size,
        source=Source(path=place.name, format="webdataset", label="cls", **{modality: extension}),
        augment=_FLIPPED_CROPS if modality == "vision" else Augmentation(spec_masks=1),
        objectives=[Classification(modality=modality, num_classes=10)],
    )  # fmt: skip
    return Corpus(name, shards, extension, task, patch)


def _write(folder: Path, extension: str, samples: Iterable[tuple[bytes, int]]) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"train-{number:05}.tar" for number in range(SHARDS)]
    tars = [tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) for path in paths]
    for number, (data, label) in enumerate(samples):
        for suffix, content in ((extension, data), ("cls", str(label).encode())):
            member = tarfile.TarInfo(f"{number:06}.{suffix}")
            member.size = len(content)
            tars[number % SHARDS].addfile(member, io.BytesIO(content))
    for tar in tars:
        tar.close()
    return paths


def _images(real: Path) -> Iterator[tuple[bytes, int]]:
    for path in sorted((real / "images").glob("train-*.parquet")):
        for row in pq.read_table(path, columns=["image", "label"]).to_pylist():
            yield row["image"]["bytes"], row["label"]


def _videos(real: Path) -> Iterator[tuple[bytes, int]]:
    folder = real / "videos" / "train"
    for line in (folder / "metadata.jsonl").read_text().splitlines():
        row = json.loads(line)
        yield (folder / row["file_name"]).read_bytes(), row["label"]


def _waveforms(real: Path) -> Iterator[tuple[bytes, int]]:
    for path in sorted((real / "audio").glob("train-*.tar")):
        with tarfile.open(path) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}
        for name in sorted(name for name in files if name.endswith(".wav")):
            yield files[name], json.loads(files[name.removesuffix("wav") + "json"])["label"]


def _recoded(waveforms: Iterable[tuple[bytes, int]], extension: str) -> Iterator[tuple[bytes, int]]:
    for data, label in waveforms:
        samples, rate = soundfile.read(io.BytesIO(data))
        out = io.BytesIO()
        soundfile.write(out, samples, rate, format=extension.upper())
        yield out.getvalue(), label


def _enlarged(images: list[tuple[bytes, int]]) -> Iterator[tuple[bytes, int]]:
    textures = [photograph(375, 500, seed) for seed in range(_TEXTURES)]
    for number, (data, label) in enumerate(images):
        large = Image.open(io.BytesIO(data)).convert("RGB").resize((500, 375), Image.Resampling.BICUBIC)
        out = io.BytesIO()
        Image.blend(large, textures[number % _TEXTURES], 0.5).save(out, "JPEG", quality=90)
        yield out.getvalue(), label
