"""Make the digits corpus: images, speech and videos of the same handwriting and voices, with captions."""

import json
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import numpy as np

from imp_ds.data.digits import captions, films, images, speech
from imp_ds.data.digits.espeak import Speaker
from imp_ds.data.digits.staging import MadeCorpus, Progress

_METADATA = "metadata.jsonl"
SPLITS = tuple(images.SHARES)
# Streams of random numbers: [seed, stage, split]. Stage 1 is the split of the handwritten images.
_IMAGES, _SPEECH, _VIDEOS = 2, 3, 4
DIGITS = MadeCorpus("digits")


def build(out: str | Path, seed: int = 0, *, scale: float = 1.0, progress: Progress | None = None) -> bool:
    """Make the corpus in the folder `out`; True when it was made, False when it was found there, complete: see
    `MadeCorpus.build`."""
    return DIGITS.build(out, seed, scale, _write, progress)


def _write(root: Path, seed: int, scale: float, progress: Progress):
    write_media(root, seed, scale, progress)
    (root / "classes.json").write_text(json.dumps(captions.classes(), indent=1))


def write_media(root: Path, seed: int, scale: float, progress: Progress) -> dict[str, dict[str, list[dict]]]:
    """Write the folders images, speech and films below `root`; returns their metadata rows, {split: {folder: rows}}.

    Speech before videos: their audio tracks are made from it.
    """
    handwriting, written = images.Handwriting(seed, scale), {}
    with Speaker() as speaker:
        for index, split in enumerate(SPLITS):
            folders = {name: root / name / split for name in ("images", "speech", "films")}
            for folder in folders.values():
                folder.mkdir(parents=True)
            streams = {stage: np.random.default_rng([seed, stage, index]) for stage in (_IMAGES, _SPEECH)}
            rows = images.write(folders["images"], handwriting, split, streams[_IMAGES])
            drawn = finish(folders["images"], rows, len(handwriting.splits[split]), progress)
            count = scaled(speech.CLIPS[split], scale, len(captions.WORDS))
            spoken = speech.write(folders["speech"], split, count, speaker, streams[_SPEECH])
            spoken = finish(folders["speech"], spoken, count, progress)
            count = scaled(films.VIDEOS[split], scale, len(captions.class_names("films")))
            clips = folders["speech"]
            rows = films.write(folders["films"], count, handwriting, split, clips, spoken, [seed, _VIDEOS, index])
            written[split] = {"images": drawn, "speech": spoken, "films": finish(folders["films"], rows, count, progress)}
    return written


def finish(folder: Path, rows: Generator[dict, None, None], count: int, progress: Progress) -> list[dict]:
    """Draw the rows, whose media are written on the way, and put them into the folder's metadata."""
    drawn = []
    with closing(rows):  # interrupted, its threads end here, before the folder they write to is removed
        for row in rows:
            drawn.append(row)
            progress(f"{folder.parent.name}/{folder.name}", len(drawn), count)
    (folder / _METADATA).write_text("".join(json.dumps(row) + "\n" for row in drawn))
    return drawn


def scaled(count: int, scale: float, classes: int) -> int:
    """The share `scale` of `count`, the same number for every class."""
    return max(1, round(count * scale / classes)) * classes
