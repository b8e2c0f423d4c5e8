"""Make the data of docs/first_run.md, tiny and synthetic: python scripts/first_run_data.py DIR"""

import argparse
import csv
import io
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from PIL import Image

EACH = 24  # files of a class, and videos
COLOURS = {"cat": (200, 80, 40), "dog": (40, 90, 200)}
TONES = {"owl": 300, "wren": 2000}  # Hz


def picture(rng: np.random.Generator, colour: tuple[int, int, int], size: int = 40) -> np.ndarray:
    """A noisy plane of one colour, uint8 [size, size, 3]."""
    return np.clip(np.array(colour) + rng.normal(0, 30, (size, size, 3)), 0, 255).astype(np.uint8)


def tone(rng: np.random.Generator, hertz: float, rate: int) -> np.ndarray:
    """A second of a noisy tone, float32 [rate]."""
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(rate) / rate) + 0.02 * rng.normal(size=rate)).astype(np.float32)


def photos(root: Path, rng: np.random.Generator) -> None:
    for name, colour in COLOURS.items():
        (root / "photos" / name).mkdir(parents=True)
        for number in range(EACH):
            Image.fromarray(picture(rng, colour)).save(root / "photos" / name / f"{number:03}.jpg")


def recordings(root: Path, rng: np.random.Generator) -> None:
    (root / "recordings").mkdir()
    rows = [("file", "species")]
    for name, hertz in TONES.items():
        for number in range(EACH):
            rows.append((f"recordings/{name}{number:03}.wav", name))
            soundfile.write(root / rows[-1][0], tone(rng, hertz * rng.uniform(0.9, 1.1), 8000), 8000)
    with open(root / "recordings.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)


def videos(root: Path, rng: np.random.Generator) -> None:
    (root / "videos").mkdir()
    for number in range(EACH):
        kind = ("cat", "owl") if number % 2 else ("dog", "wren")
        with av.open(str(root / "videos" / f"{number:03}.mp4"), "w") as container:
            _add_streams(container, rng, COLOURS[kind[0]], TONES[kind[1]])


def _add_streams(container, rng: np.random.Generator, colour: tuple[int, int, int], hertz: int) -> None:
    """A second of video, 8 frames, and of audio, 16 kHz."""
    video, audio = container.add_stream("mpeg4", rate=8), container.add_stream("aac", rate=16000)
    video.width = video.height = 48
    video.pix_fmt, audio.layout = "yuv420p", "mono"
    for _ in range(8):
        container.mux(video.encode(av.VideoFrame.from_ndarray(picture(rng, colour, 48))))
    container.mux(video.encode())
    wave = tone(rng, hertz, 16000)
    for start in range(0, len(wave) - 1023, 1024):
        frame = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, start
        container.mux(audio.encode(frame))
    container.mux(audio.encode())


def captions(path: Path, rng: np.random.Generator) -> None:
    images, texts = [], []
    for number in range(2 * EACH):
        name, colour = list(COLOURS.items())[number % 2]
        file = io.BytesIO()
        Image.fromarray(picture(rng, colour)).save(file, "PNG")
        images.append(file.getvalue())
        texts.append(f"a photo of a {name}, number {number}")
    pq.write_table(pa.table({"image": images, "caption": texts}), path)


def make(root: Path) -> None:
    """Write all of it below `root`, which is made."""
    root.mkdir(parents=True)
    rng = np.random.default_rng(3)  # of each source some are held out
    for kind in (photos, recordings, videos):
        kind(root, rng)
    captions(root / "captions.parquet", rng)
    captions(root / "more.parquet", rng)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where it is made; must not be there yet")
    make(parser.parse_args().folder)
