"""The digits corpus: same seed, same bytes; no leak between splits; readable by `datasets`; never half a corpus."""

import hashlib
import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import av
import datasets
import numpy as np
import pytest
import soundfile
from PIL import Image

from helpers.ranks import run_ranks
from imp_ds.data import digits
from imp_ds.data.digits import corpus as corpus_module
from imp_ds.data.digits.captions import DIRECTIONS, WORDS, classes
from imp_ds.errors import UserError

SCALE = 0.03
SPLITS = ("train", "validation", "test")
# 0.03 of 2400, 400, 800 videos in steps of 40 classes: 72 -> 80, 12 -> 40, 24 -> 40. Speech in steps of 10: 90, 10, 20.
# Images by class: 0.03 of 174..183 is 5, of which max(1, 0.5) validation, 1 test, 3 train; times ten classes.
COUNTS = {"films": (80, 40, 40), "speech": (90, 10, 20), "images": (30, 10, 10)}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("digits") / "corpus"
    assert digits.build(out, scale=SCALE)
    return out


@pytest.fixture
def copy(corpus, tmp_path) -> Path:
    return Path(shutil.copytree(corpus, tmp_path / "copy"))


def rows(corpus: Path, folder: str, split: str) -> list[dict]:
    return [json.loads(line) for line in (corpus / folder / split / "metadata.jsonl").read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def build_other(out: Path) -> None:
    assert digits.build(out, scale=SCALE)


def test_the_same_seed_gives_the_same_bytes_in_this_and_in_another_process(corpus, tmp_path):
    assert digits.build(tmp_path / "again", scale=SCALE)
    run_ranks(build_other, tmp_path / "other", ranks=1, folder=tmp_path / "logs")
    first = contents(corpus)
    for other in ("again", "other"):
        second = contents(tmp_path / other)
        assert first.keys() == second.keys()
        assert [name for name in first if first[name] != second[name]] == []


def test_another_seed_gives_other_samples(corpus, tmp_path):
    digits.build(tmp_path / "one", seed=1, scale=SCALE)
    for folder, column in (("images", "drawing"), ("films", "drawing"), ("speech", "voice")):
        assert [r[column] for r in rows(corpus, folder, "train")] != [r[column] for r in rows(tmp_path / "one", folder, "train")]


@pytest.mark.parametrize("folder", COUNTS)
def test_every_class_is_in_every_split_equally_often(corpus, folder):
    names = classes()[folder]["names"]
    for split, count in zip(SPLITS, COUNTS[folder]):
        labels = [row["label"] for row in rows(corpus, folder, split)]
        assert np.bincount(labels, minlength=len(names)).tolist() == [count // len(names)] * len(names)


def test_no_handwritten_image_is_in_two_splits(corpus):
    pixels, indices = {}, {}
    for split in SPLITS:
        files = [corpus / "images" / split / row["file_name"] for row in rows(corpus, "images", split)]
        pixels[split] = {hashlib.sha256(np.asarray(Image.open(file)).tobytes()).hexdigest() for file in files}
        indices[split] = {row["drawing"] for row in rows(corpus, "images", split)}
        assert len(pixels[split]) == len(indices[split]) == len(files)
        assert {row["drawing"] for row in rows(corpus, "films", split)} <= indices[split]
    assert len(set.union(*pixels.values())) == sum(map(len, pixels.values()))


def test_the_full_splits_of_the_images_share_no_pixels():
    from imp_ds.data.digits.images import Handwriting

    handwriting = Handwriting(seed=0, scale=1.0)
    pixels = {s: {handwriting.ink_NHW[i].tobytes() for i in indices} for s, indices in handwriting.splits.items()}
    # All 1,797 images, which are all different, are in exactly one split; 10% and 20% of each class, rounded:
    # class sizes 178 182 177 183 181 182 181 179 174 180
    # give        18  18  18  18  18  18  18  18  17  18, 179 together, and
    #             36  36  35  37  36  36  36  36  35  36, 359 together.
    assert {split: len(found) for split, found in pixels.items()} == {"train": 1797 - 179 - 359, "validation": 179, "test": 359}
    assert len(set.union(*pixels.values())) == 1797


def test_no_voice_is_in_two_splits(corpus):
    variants = {}
    for split in SPLITS:
        voices = [row["voice"] for row in rows(corpus, "speech", split)]
        variants[split] = {voice.split("+")[1] for voice in voices}
        assert {row["voice"] for row in rows(corpus, "films", split)} <= set(voices)
    assert not variants["train"] & variants["test"]
    assert not variants["train"] & variants["validation"]
    assert not variants["validation"] & variants["test"]


@pytest.fixture
def importable_torchcodec(monkeypatch):
    """`datasets` imports torchcodec's encoder before it looks at a recording, though it stores a file's path and encodes
    nothing."""
    if find_spec("torchcodec") is None:
        encoders = ModuleType("torchcodec.encoders")
        encoders.AudioEncoder = None
        monkeypatch.setitem(sys.modules, "torchcodec", ModuleType("torchcodec"))
        monkeypatch.setitem(sys.modules, "torchcodec.encoders", encoders)


def test_datasets_loads_every_folder_as_it_is(corpus, tmp_path, importable_torchcodec):
    features = {"imagefolder": ("images", "image", datasets.Image), "videofolder": ("films", "video", datasets.Video),
                "audiofolder": ("speech", "audio", datasets.Audio)}  # fmt: skip
    for builder, (folder, column, feature) in features.items():
        loaded = datasets.load_dataset(builder, data_dir=str(corpus / folder), cache_dir=str(tmp_path))
        assert tuple(len(loaded[split]) for split in SPLITS) == COUNTS[folder]
        for split in SPLITS:
            first = loaded[split].cast_column(column, feature(decode=False))[0]
            expected = rows(corpus, folder, split)[0]
            assert (first["label"], first["captions"]) == (expected["label"], expected["captions"])
            assert Path(first[column]["path"]).name == expected["file_name"]


def test_images_are_grey_bright_on_black_32_by_32(corpus):
    for row in rows(corpus, "images", "test"):
        image = Image.open(corpus / "images" / "test" / row["file_name"])
        assert (image.size, image.mode, image.format) == ((32, 32), "L", "PNG")
        pixels = np.asarray(image)
        assert pixels.max() >= 240 and np.median(pixels) < 128 and pixels[:, 0].mean() < 60


def test_an_image_is_the_digit_that_it_says(corpus):
    from sklearn.datasets import load_digits

    data = load_digits()
    for row in rows(corpus, "images", "train"):
        pixels = np.asarray(Image.open(corpus / "images" / "train" / row["file_name"]), dtype=float)
        original = data.images[row["drawing"]] * 255 / 16
        assert data.target[row["drawing"]] == row["label"]
        # Means of 4x4 blocks undo the enlargement by 4, up to the blur of the interpolation.
        assert np.corrcoef(pixels.reshape(8, 4, 8, 4).mean((1, 3)).ravel(), original.ravel())[0, 1] > 0.97


def _clip(corpus: Path, split: str, row: dict) -> np.ndarray:
    return soundfile.read(corpus / "speech" / split / row["file_name"])[0]


def _centroids(frames_FHW: np.ndarray) -> np.ndarray:
    """Centre (y, x) of what is much brighter than the background, for each frame."""
    centres = []
    for frame_HW in frames_FHW.astype(float):
        ink = np.clip(frame_HW - np.median(frame_HW) - 40, 0, None)
        centres.append([(ink.sum(1 - axis) * np.arange(ink.shape[axis])).sum() / ink.sum() for axis in (0, 1)])
    return np.array(centres)


def test_videos_move_in_the_direction_of_their_label(corpus):
    sign = {"left": (1, -1), "right": (1, 1), "up": (0, -1), "down": (0, 1)}  # axis (0 is y) and sign of the motion
    for row in rows(corpus, "films", "train"):
        with av.open(str(corpus / "films" / "train" / row["file_name"])) as container:
            frames_FHW = np.stack([frame.to_ndarray(format="gray") for frame in container.decode(video=0)])
        assert frames_FHW.shape == (8, 48, 48)
        assert divmod(row["label"], 4) == (row["digit"], DIRECTIONS.index(row["direction"]))
        steps = np.diff(_centroids(frames_FHW), axis=0)
        axis, direction = sign[row["direction"]]
        # 1.5 to 2.7 pixels a frame, rounded to whole pixels: 1 to 3; a little blur by the codec.
        assert (steps[:, axis] * direction > 0.5).all() and (steps[:, axis] * direction < 3.5).all()
        assert np.abs(steps[:, 1 - axis]).max() < 0.5


def test_a_video_carries_the_spoken_word_as_long_as_it_runs(corpus):
    split = "validation"
    speech = [(row, _clip(corpus, split, row)) for row in rows(corpus, "speech", split)]
    for row in rows(corpus, "films", split)[:10]:
        with av.open(str(corpus / "films" / split / row["file_name"])) as container:
            stream = container.streams.audio[0]
            assert (stream.codec_context.name, stream.rate, stream.channels) == ("aac", 16000, 1)
            track = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
        assert 16000 <= len(track) < 16000 + 1024  # one second, padded to whole AAC frames of 1024
        candidates = [clip for said, clip in speech if (said["voice"], said["label"]) == (row["voice"], row["digit"])]
        # A clip found in the track gives a normalised correlation near 1 at its place; AAC costs a little.
        norm = np.linalg.norm(track)
        assert max(np.correlate(track, clip, "valid").max() / (np.linalg.norm(clip) * norm) for clip in candidates) > 0.9


def test_speech_is_one_loud_word_of_16_khz(corpus):
    for split in SPLITS:
        for row in rows(corpus, "speech", split):
            file = corpus / "speech" / split / row["file_name"]
            info = soundfile.info(file)
            assert (info.samplerate, info.channels, info.format, info.subtype) == (16000, 1, "FLAC", "PCM_16")
            assert 0.2 <= info.duration <= 1.5 and info.duration == row["seconds"]
            samples = _clip(corpus, split, row)
            assert abs(np.abs(samples).max() - 0.9) < 1e-3
            assert np.abs(samples[:300]).max() < 0.02  # at least 20 ms, 320 samples, of silence before the word
            assert WORDS[row["label"]] == row["word"]


def _spectrum(samples: np.ndarray) -> np.ndarray:
    """Log power in 20 bands at 8 places of the word, level removed: float [160]."""
    loud = np.flatnonzero(np.abs(samples) > 0.02)
    word = np.pad(samples[loud[0] : loud[-1] + 1], (0, 512))
    starts = np.linspace(0, len(word) - 512, 8).astype(int)
    power = np.stack([np.abs(np.fft.rfft(word[s : s + 512] * np.hanning(512))) ** 2 for s in starts])
    bands = np.log(np.stack([band.mean(1) for band in np.array_split(power[:, 2:162], 20, axis=1)], axis=1) + 1e-4)
    return (bands - bands.mean()).ravel()


def test_words_of_unseen_voices_are_learnable(corpus):
    """A linear classifier on 90 clips is far above chance (0.1) on the voices that it never heard."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    def features(split):
        found = rows(corpus, "speech", split)
        return np.stack([_spectrum(_clip(corpus, split, row)) for row in found]), [row["label"] for row in found]

    classifier = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.5).fit(*features("train"))
    assert classifier.score(*features("test")) >= 0.8


def test_captions_name_the_class_in_few_words(corpus):
    words = set()
    for folder in COUNTS:
        for row in rows(corpus, folder, "train"):
            assert 4 <= len(row["captions"]) <= 6 and len(set(row["captions"])) == len(row["captions"])
            for caption in row["captions"]:
                tokens = caption.replace(".", "").replace(",", "").split()
                words.update(tokens)
                digit = row["label"] // 4 if folder == "films" else row["label"]
                assert [w for w in tokens if w in WORDS] == [WORDS[digit]]
                assert folder != "films" or [w for w in tokens if w in DIRECTIONS] == [row["direction"]]
    assert len(words) < 300


def test_classes_name_every_label_and_prompt_as_captions_do(corpus):
    stored = json.loads((corpus / "classes.json").read_text())
    assert stored["images"]["names"] == stored["speech"]["names"] == list(WORDS)
    assert stored["films"]["names"][:4] == ["zero moving left", "zero moving right", "zero moving up", "zero moving down"]
    assert len(stored["films"]["names"]) == 40
    for folder, found in stored.items():
        seen = {caption for row in rows(corpus, folder, "train") for caption in row["captions"]}
        prompts = {template.format(name) for template in found["templates"] for name in found["names"]}
        assert len(prompts) == len(found["templates"]) * len(found["names"])
        assert len(prompts & seen) > len(found["templates"])  # prompts of more than one class are captions of training


def test_a_complete_corpus_is_left_alone(copy):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    calls = []
    assert digits.build(copy, scale=SCALE, progress=lambda *call: calls.append(call)) is False
    assert calls == [] and {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


def test_damaged_and_missing_files_are_named(copy):
    flipped, missing = copy / "speech/test/00001.flac", copy / "films/train/00002.mp4"
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    missing.unlink()
    for check in (lambda: digits.verify(copy), lambda: digits.build(copy, scale=SCALE)):
        with pytest.raises(UserError) as error:
            check()
        message = str(error.value)
        assert "speech/test/00001.flac (other content" in message and "films/train/00002.mp4 (missing)" in message
        assert f"delete {copy}" in message


@pytest.mark.parametrize("content", [b"", b"[1]", b"{}", b'{"hash": "0", "files": {}}', b"\xff\xfe"])
def test_a_damaged_manifest_is_named(copy, content):
    (copy / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match="manifest.json"):
        digits.verify(copy)


def test_no_corpus_learns_how_to_make_one(tmp_path):
    with pytest.raises(UserError, match="corpus digits"):
        digits.verify(tmp_path / "nowhere")


@pytest.mark.parametrize("arguments", [{"seed": 1, "scale": SCALE}, {"scale": 0.5}])
def test_a_corpus_of_another_seed_or_scale_is_refused(copy, arguments):
    with pytest.raises(UserError, match="another digits corpus"):
        digits.build(copy, **arguments)


def test_a_folder_with_other_things_is_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("ten years of work")
    with pytest.raises(UserError, match="thesis.tex"):
        digits.build(tmp_path, scale=SCALE)
    assert contents(tmp_path) == {"thesis.tex": b"ten years of work"}


def test_a_file_in_the_place_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="digits corpus"):
            digits.build(out, scale=SCALE)


@pytest.mark.parametrize("arguments", [{"scale": 0.0}, {"scale": 1.5}, {"scale": float("nan")}, {"seed": -1}])
def test_numbers_out_of_range_are_refused(tmp_path, arguments):
    with pytest.raises(UserError, match="out of range"):
        digits.build(tmp_path / "out", **arguments)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_build_leaves_nothing(tmp_path, error):
    def stop(stage, done, total):
        if stage == "films/train" and done == 10:
            raise error

    with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt):
        digits.build(tmp_path / "out", scale=SCALE, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_two_builds_at_once_leave_one_corpus(tmp_path, monkeypatch, corpus):
    out = tmp_path / "out"

    def write_while_another_finishes(staging, *_):
        shutil.copytree(corpus, staging)
        shutil.copytree(corpus, out)

    monkeypatch.setattr(corpus_module, "_write", write_while_another_finishes)
    assert digits.build(out, scale=SCALE) is False
    assert contents(out) == contents(corpus) and list(tmp_path.iterdir()) == [out]


def test_the_empty_folder_that_one_stands_in_will_do(corpus, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert digits.build(".", scale=SCALE)
    assert contents(tmp_path / "here") == contents(corpus) and [p.name for p in tmp_path.iterdir()] == ["here"]


def test_progress_counts_every_sample(tmp_path):
    last = {}
    digits.build(tmp_path / "out", scale=SCALE, progress=lambda stage, done, total: last.update({stage: (done, total)}))
    expected = {f"{folder}/{split}": (n, n) for folder, counts in COUNTS.items() for split, n in zip(SPLITS, counts)}
    assert last == expected
