"""Decoding: known pictures, films and sounds come back; damaged and hostile ones are named."""

import json
import pickle

import numpy as np
import pytest
import soundfile
from media_files import write_corpus, write_film
from PIL import Image

from imp_ds.data.cache import MediaCache
from imp_ds.data.decoding import DecodeError, decode, read_film, read_image, read_sound
from imp_ds.data.sources import FolderSource
from imp_ds.tasks import AudioView, Source, TextView, Views, VisionView

GREYS = np.arange(10, dtype=np.uint8) * 20 + 30


def grey_film(frames=10, size=32):
    return np.broadcast_to(GREYS[:frames, None, None, None], (frames, size, size, 3))


@pytest.mark.parametrize("mode, value, expected", [
    ("L", 100, (100, 100, 100)), ("RGB", (1, 2, 3), (1, 2, 3)), ("1", 1, (255, 255, 255)),
    ("RGBA", (9, 8, 7, 0), (9, 8, 7)), ("LA", (50, 255), (50, 50, 50)), ("I;16", 100 * 256 + 7, (100, 100, 100)),
])  # fmt: skip
def test_every_mode_becomes_rgb(tmp_path, mode, value, expected):
    Image.new(mode, (5, 3), value).save(tmp_path / "x.png")
    picture = read_image(tmp_path / "x.png")
    assert picture.shape == (3, 5, 3) and picture.dtype == np.uint8
    assert tuple(picture[0, 0]) == expected


def test_a_palette_and_cmyk_become_rgb(tmp_path):
    Image.new("RGB", (4, 4), (255, 0, 0)).quantize(2).save(tmp_path / "p.png")
    assert tuple(read_image(tmp_path / "p.png")[0, 0]) == (255, 0, 0)
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(tmp_path / "c.jpg")
    assert tuple(read_image(tmp_path / "c.jpg")[0, 0]) == (255, 255, 255)


def test_exif_orientation_is_undone(tmp_path):
    # Orientation 6: the camera lay on its side; the stored left column is the upright top row.
    stored = np.zeros((8, 16, 3), np.uint8)
    stored[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(tmp_path / "x.png", exif=exif)
    upright = read_image(tmp_path / "x.png")
    assert upright.shape == (16, 8, 3)
    assert upright[:8].min() == 255 and upright[8:].max() == 0


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])  # the header of a mkv does not say how many frames there are
def test_films_give_uniform_frames(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    write_film(path, grey_film())
    # 10 frames in 4 parts of 2.5: the middles are 1.25, 3.75, 6.25 and 8.75; in one part: 5.
    frames = read_film(path, 4)
    assert frames.shape == (4, 32, 32, 3) and frames.dtype == np.uint8
    np.testing.assert_allclose(frames.mean((1, 2, 3)), GREYS[[1, 3, 6, 8]], atol=2)
    np.testing.assert_allclose(read_film(path, 1).mean(), GREYS[5], atol=2)
    assert len(read_film(path, 100)) == 10


def test_a_film_sound_track_and_its_rate(tmp_path):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    write_film(tmp_path / "x.mp4", grey_film(), np.stack([tone, np.zeros_like(tone)]))
    sound, rate = read_sound(tmp_path / "x.mp4")
    assert rate == 16000 and sound.dtype == np.float32 and sound.ndim == 1
    # The mean of a tone of amplitude 0.5 and silence is a tone of 0.25; the AAC encoder adds at most a frame or two.
    spectrum = np.abs(np.fft.rfft(sound[2048:14048])) / 6000
    assert abs(np.argmax(spectrum) * 16000 / 12000 - 440) < 2
    assert spectrum.max() == pytest.approx(0.25, abs=0.02)
    assert 15000 < len(sound) < 18100


@pytest.mark.parametrize("name, subtype, exact", [("x.flac", "PCM_16", 1e-4), ("x.wav", "FLOAT", 1e-7), ("x.ogg", None, 0.1)])
def test_sounds_are_mixed_to_mono(tmp_path, name, subtype, exact):
    left = np.sin(np.arange(4000) / 10).astype(np.float32) * 0.5
    soundfile.write(tmp_path / name, np.stack([left, -0.5 * left], 1), 8000, subtype=subtype)
    sound, rate = read_sound(tmp_path / name)
    assert rate == 8000 and sound.dtype == np.float32
    np.testing.assert_allclose(sound, 0.25 * left, atol=exact)


def test_damaged_and_hostile_media_are_named(tmp_path):
    good = tmp_path / "good.png"
    Image.effect_noise((64, 64), 50).save(good)
    write_film(tmp_path / "good.mp4", grey_film())
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan, np.float32), 8000, subtype="FLOAT")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), 8000)
    files = {
        "cut.png": good.read_bytes()[:1000],
        "text.png": b"hello",
        "eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        "cut.mp4": (tmp_path / "good.mp4").read_bytes()[:300],
        "text.mp4": b"hello",
        "playlist.mp4": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n",
        "concat.mp4": b"ffconcat version 1.0\nfile '/etc/hostname'\n",
        "text.flac": b"hello",
        "text.m4a": b"hello",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name in [*files, "nan.wav", "empty.wav", "gone.png", "gone.wav"]:
        read = read_image if name.endswith("png") else (lambda p: read_film(p, 4)) if name.endswith("mp4") else read_sound
        with pytest.raises(DecodeError) as error:
            read(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
    with pytest.raises(DecodeError, match="no sound"):
        read_sound(tmp_path / "good.mp4")


def test_sizes_are_refused_from_the_header(tmp_path, monkeypatch):
    monkeypatch.setattr("imp_ds.data.decoding.MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr("imp_ds.data.decoding.MAX_SOUND_SAMPLES", 50)
    Image.new("L", (11, 10)).save(tmp_path / "x.png")
    write_film(tmp_path / "x.mp4", grey_film())
    soundfile.write(tmp_path / "x.wav", np.zeros(51), 8000)
    for read, name in ((read_image, "x.png"), (lambda p: read_film(p, 2), "x.mp4"), (read_sound, "x.wav")):
        with pytest.raises(DecodeError, match="more than|too many"):
            read(tmp_path / name)


def test_a_decode_error_survives_a_process_border():
    error = pickle.loads(pickle.dumps(DecodeError("a/b.png", "broken")))
    assert (error.path, error.reason, str(error)) == ("a/b.png", "broken", "a/b.png: broken")


def test_decode_follows_the_views(tmp_path):
    write_corpus(tmp_path, rows=3, splits=("train",))
    films = FolderSource(
        tmp_path, Source(path="films", vision="file_name", audio="file_name", text="captions", label="label"), "train"
    )
    views = Views(vision=VisionView(frames=2, height=32, width=32), audio=AudioView(seconds=0.2), text=TextView())
    sample = decode(films, 1, views)
    assert set(sample) == {"vision", "audio", "text", "label"}
    assert sample["vision"].shape == (2, 32, 32, 3) and abs(float(sample["vision"].mean()) - 10) < 2
    assert sample["audio"][1] == 16000 and sample["text"] == "films 1" and sample["label"] == 1
    assert set(decode(films, 1, Views(text=TextView()))) == {"text", "label"}
    drawn = {decode(films, 1, Views(text=TextView()), np.random.default_rng(seed))["text"] for seed in range(40)}
    assert drawn == {"films 1", "number 1", "this is 1"}


def test_the_cache_is_bounded_and_keeps_what_came_first(tmp_path):
    reads = []

    def read(name, size):
        reads.append(name)
        return np.zeros(size, np.uint8)

    cache = MediaCache(1)
    for name, size in [("a", 600_000), ("b", 600_000), ("c", 400_000), ("a", 0), ("b", 600_000), ("c", 0)]:
        cache.get(name, lambda: read(name, size))
    assert reads == ["a", "b", "c", "b"] and len(cache) == 2  # 600,000 + 400,000 fit into 1,048,576; "b" never does
    nothing = MediaCache(0)
    reads.clear()
    for _ in range(2):
        nothing.get("a", lambda: read("a", 10))
    assert reads == ["a", "a"]


def test_a_file_is_decoded_once_with_a_cache(tmp_path):
    write_corpus(tmp_path, rows=2, splits=("train",))
    source = FolderSource(tmp_path, Source(path="images", vision="file_name"), "train")
    views, cache = Views(vision=VisionView(frames=1, height=32, width=32)), MediaCache(1)
    first = decode(source, 0, views, cache=cache)["vision"]
    (tmp_path / "images/train/0.png").unlink()
    np.testing.assert_array_equal(decode(source, 0, views, cache=cache)["vision"], first)
    with pytest.raises(ValueError, match="read-only"):
        first[:] = 0
    assert json.dumps(source.row(0)) == '{"vision": "0.png"}'
