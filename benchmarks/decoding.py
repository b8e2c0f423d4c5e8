"""Where decoding takes a shorter way, and whether it is one: JPEGs scaled by their decoder, videos by key frames, torch's resize,
our change of rates.

    python benchmarks/decoding.py [--rounds 7] [--out benchmarks/results/decoding.md]

Each pair takes turns in one process on one thread; a figure is the best of the rounds. About two minutes.
"""

import argparse
import datetime
import io
import os
import platform
import sys
import tempfile
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests")]

from corpora import photograph  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="write the tables to this file too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        parts = [part(options.rounds) for part in (jpegs, resizing, partial(films, Path(folder)), rates)]
    text = "\n".join([head(), *parts])
    print(text)
    if options.out:
        options.out.write_text(text)


def head() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "pillow", "av", "scipy", "numpy"))
    return (
        "# Decoding: where the shorter way pays\n\n"
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, 1 thread; Python {platform.python_version()},\n"
        f"{packages}.\n"
        "Best of the rounds, in which both ways take turns, in ms. `python benchmarks/decoding.py` makes this file.\n"
    )


def best(rounds: int, **ways) -> dict[str, float]:
    """The least time of each way, in ms, once each is warm."""
    found = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if number:
                found[name].append(1e3 * (time.perf_counter() - start))
    return {name: min(times) for name, times in found.items()}


def table(title: str, columns: list[str], rows: list[list]) -> str:
    lines = [f"\n## {title}\n", f"| {' | '.join(columns)} |", "| " + " | ".join(["---:"] * len(columns)) + " |"]
    return "\n".join(lines + [f"| {' | '.join(map(str, row))} |" for row in rows]) + "\n"


def jpegs(rounds: int) -> str:
    from imp_ds.modalities.media import Media
    from imp_ds.modalities.vision.image import read_image

    rows = []
    for height, width in ((375, 500), (768, 1024), (1536, 2048)):
        out = io.BytesIO()
        photograph(height, width).save(out, "JPEG", quality=85)
        media = Media("x.jpg", read=out.getvalue)
        for needed in (64, 128, 224, 256):
            times = best(rounds, full=lambda: read_image(media), scaled=lambda: read_image(media, (needed, needed)))
            shape = read_image(media, (needed, needed)).shape[:2]
            ratio = times["full"] / times["scaled"]
            cells = [f"{height} x {width}", needed, f"{shape[0]} x {shape[1]}"]
            rows.append([*cells, f"{times['whole']:.2f}", f"{times['scaled']:.2f}", f"{ratio:.1f}"])
    return table("A JPEG that is needed smaller", ["picture", "needed", "decoded at", "full", "scaled", "times faster"], rows)


def resizing(rounds: int) -> str:
    from imp_ds.modalities.vision.framing import resize

    rows = []
    for size, target in (((375, 375), 256), ((256, 256), 224), ((64, 64), 32), ((1024, 768), 256)):
        clip = np.asarray(photograph(*size))[None]
        image = Image.fromarray(clip[0])
        pillow = lambda: np.asarray(image.resize((target, target), Image.Resampling.BICUBIC))  # noqa: E731
        times = best(4 * rounds, ours=lambda: resize(clip, (target, target)), pillow=pillow)
        differ = np.abs(resize(clip, (target, target))[0].astype(int) - pillow()).max()
        cells = [f"{size[0]} x {size[1]} to {target} x {target}", f"{times['pillow']:.3f}", f"{times['ours']:.3f}"]
        rows.append([*cells, f"{times['pillow'] / times['ours']:.1f}", differ])
    return table("Bicubic resizing", ["pictures", "Pillow", "torch", "times faster", "largest difference"], rows)


def films(folder: Path, rounds: int) -> str:
    from helpers.media_files import write_video
    from imp_ds.modalities.media import Media
    from imp_ds.modalities.media_cache import MediaCache
    from imp_ds.modalities.vision import video as film
    from imp_ds.modalities.vision.view import VisionView

    rows, nothing = [], MediaCache(0)
    base = np.asarray(photograph(240, 320))
    frames = np.stack([np.roll(base, (k, 2 * k), (0, 1)) for k in range(300)])
    for group in (12, 30, 75, 250):
        path = folder / f"{group}.mp4"
        write_video(path, frames, options={"g": str(group), "crf": "23", "preset": "veryfast"})
        media = Media(str(path), path=path)
        for wanted in (1, 2, 4, 8, 16):
            view = VisionView(frames=wanted)

            def read(threshold: int):
                film.SEEK_FROM = threshold
                return film.read_video(media, view, None, nothing)

            times = best(rounds, on=lambda: read(1 << 30), seeking=lambda: read(8), always=lambda: read(0))
            cells = [group, wanted, *(f"{times[way]:.1f}" for way in ("on", "seeking", "always"))]
            rows.append([*cells, f"{times['on'] / times['seeking']:.1f}"])
    columns = ["frames between key frames", "wanted of 300", "read on", "seek when 8 are skipped", "seek always", "times faster"]
    return table("A video of 320 x 240, 12 s", columns, rows)


def rates(rounds: int) -> str:
    from scipy.signal import resample_poly

    from imp_ds.modalities.audio.resampling import resample

    rows = []
    for rate in (8000, 44100, 48000, 8240):
        waveform = np.random.default_rng(0).normal(size=10 * rate).astype(np.float32)
        divisor = np.gcd(rate, 16000)
        scipy = lambda: resample_poly(waveform, 16000 // divisor, rate // divisor)  # noqa: E731
        times = best(rounds, ours=lambda: resample(waveform, rate, 16000), scipy=scipy)
        differ = np.abs(resample(waveform, rate, 16000) - scipy()).max()
        cells = [f"{rate} to 16000", f"{times['scipy']:.2f}", f"{times['ours']:.2f}"]
        rows.append([*cells, f"{times['scipy'] / times['ours']:.1f}", f"{differ:.0e}"])
    columns = ["samples a second", "scipy", "ours", "times faster", "largest difference"]
    return table("10 s of audio at another rate", columns, rows)


if __name__ == "__main__":
    main()
