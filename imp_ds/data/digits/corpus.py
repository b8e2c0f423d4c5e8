"""Make the digits corpus: all of it, in a staging folder beside its place, renamed when it is complete."""

import json
import tempfile
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path

import numpy as np

from imp_ds.data.digits import captions, films, images, manifest, speech
from imp_ds.data.digits.espeak import Speaker
from imp_ds.errors import UserError

Progress = Callable[[str, int, int], None]
_METADATA = "metadata.jsonl"
_OWN_FOLDER = "the digits corpus needs a folder of its own"
_SPLITS = tuple(images.SHARES)
# Streams of random numbers: [seed, stage, split]. Stage 1 is the split of the handwritten images.
_IMAGES, _SPEECH, _VIDEOS = 2, 3, 4


def build(out: str | Path, seed: int = 0, *, scale: float = 1.0, progress: Progress | None = None) -> bool:
    """Make the corpus in the folder `out`; True when it was made, False when it was found there, complete.

    The same seed and scale give the same bytes.

    Args:
        scale: above 0, at most 1: the share of the samples that is made, at least one for each class and split.
        progress: called with (stage, samples done, samples in all).

    Raises UserError when `scale` or `seed` is out of range, when `out` holds anything else, a corpus of another seed or
    scale, or a damaged one (it names the files), and when it cannot be written. `out` is then as it was.
    """
    out = Path(out).resolve()  # "." has neither a name nor a parent, and a link cannot be replaced by a folder
    if not 0 < scale <= 1:
        raise UserError("the scale of the corpus is out of range", got=scale, allowed="above 0, at most 1")
    if seed < 0:
        raise UserError("the seed of the corpus is out of range", got=seed, allowed="0, 1, 2, ...")
    if _found(out, seed, scale):
        return False
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as private:
            staging = Path(private) / out.name
            _write(staging, seed, scale, progress or (lambda stage, done, total: None))
            return _move(staging, out, seed, scale)
    except OSError as error:
        raise _unwritable(out, error) from error


def _found(out: Path, seed: int, scale: float) -> bool:
    """Is the corpus there already? False when `out` is free. Raises UserError when something else is in the way."""
    try:
        if out.exists() and not out.is_dir():
            raise UserError(_OWN_FOLDER, got=f"{out} is a file", fix="name another folder")
        if not out.exists() or not any(out.iterdir()):
            return False
        if not (out / manifest.NAME).exists():
            some = ", ".join(sorted(path.name for path in out.iterdir())[:3])
            raise UserError(_OWN_FOLDER, got=f"{out} holds {some}", fix="name a new or empty folder")
    except OSError as error:
        raise _unwritable(out, error) from error
    there = manifest.verify(out)
    if (there["seed"], there["scale"]) != (seed, scale):
        got, allowed = f"seed {there['seed']}, scale {there['scale']}", f"seed {seed}, scale {scale}, as asked"
        fix = f"name another folder, or delete {out}"
        raise UserError(f"{out} holds another digits corpus", got=got, allowed=allowed, fix=fix)
    return True


def _unwritable(out: Path, error: OSError) -> UserError:
    return UserError(f"the digits corpus cannot be written to {out}", got=error, fix="name a folder that can be written")


def _move(staging: Path, out: Path, seed: int, scale: float) -> bool:
    try:
        staging.rename(out)
    except OSError:
        # Somebody else may have finished the same corpus in the meantime.
        if not _found(out, seed, scale):
            raise
        return False
    return True


def _write(root: Path, seed: int, scale: float, progress: Progress):
    """Write the whole corpus below `root`. Speech before videos: their audio tracks are made from it."""
    handwriting = images.Handwriting(seed, scale)
    with Speaker() as speaker:
        for index, split in enumerate(_SPLITS):
            folders = {name: root / name / split for name in ("images", "speech", "films")}
            for folder in folders.values():
                folder.mkdir(parents=True)
            streams = {stage: np.random.default_rng([seed, stage, index]) for stage in (_IMAGES, _SPEECH)}
            rows = images.write(folders["images"], handwriting, split, streams[_IMAGES])
            _finish(folders["images"], rows, len(handwriting.splits[split]), progress)
            count = _scaled(speech.CLIPS[split], scale, len(captions.WORDS))
            spoken = speech.write(folders["speech"], split, count, speaker, streams[_SPEECH])
            spoken = _finish(folders["speech"], spoken, count, progress)
            count = _scaled(films.VIDEOS[split], scale, len(captions.class_names("films")))
            clips = folders["speech"]
            rows = films.write(folders["films"], count, handwriting, split, clips, spoken, [seed, _VIDEOS, index])
            _finish(folders["films"], rows, count, progress)
    (root / "classes.json").write_text(json.dumps(captions.classes(), indent=1))
    manifest.write(root, seed, scale)


def _finish(folder: Path, rows: Generator[dict, None, None], count: int, progress: Progress) -> list[dict]:
    """Draw the rows, whose media are written on the way, and put them into the folder's metadata."""
    drawn = []
    with closing(rows):  # interrupted, its threads end here, before the folder they write to is removed
        for row in rows:
            drawn.append(row)
            progress(f"{folder.parent.name}/{folder.name}", len(drawn), count)
    (folder / _METADATA).write_text("".join(json.dumps(row) + "\n" for row in drawn))
    return drawn


def _scaled(count: int, scale: float, classes: int) -> int:
    """The share `scale` of `count`, the same number for every class."""
    return max(1, round(count * scale / classes)) * classes
