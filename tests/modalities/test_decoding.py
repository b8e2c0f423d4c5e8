"""Decoding: known pictures, videos and recordings come back; damaged and hostile ones are named."""

import pickle
import time
import tracemalloc

import numpy as np
import pytest
import soundfile
from PIL import Image

from helpers.media_files import bomb, write_corpus, write_video
from imp_ds.data.decoding import decode, decode_all, decode_windows
from imp_ds.modalities import in_turn as turns
from imp_ds.modalities.audio import recordings as waveforms
from imp_ds.modalities.audio.view import AudioView
from imp_ds.modalities.decoding_settings import DecodingSettings
from imp_ds.modalities.media import BadSample, Media
from imp_ds.modalities.media_cache import MediaCache
from imp_ds.modalities.modality import Wanted
from imp_ds.modalities.text.view import TextView
from imp_ds.modalities.views import Augmentation, Views
from imp_ds.modalities.vision import clips as picture
from imp_ds.modalities.vision import image as images
from imp_ds.modalities.vision import times as shown
from imp_ds.modalities.vision import video as films
from imp_ds.modalities.vision.view import VisionView

NOTHING = MediaCache(0)


def media(path):
    return Media(str(path), path=path)


def read_image(path, needed=None):
    return images.read_image(media(path), needed)


def read_video(path, frames, rng=None, **view):
    return films.read_video(media(path), VisionView(frames=frames, **view), rng, NOTHING)


def read_recording(path):
    return waveforms.open_recording(media(path)).samples()


GREYS = np.arange(10, dtype=np.uint8) * 20 + 30


def grey_video(frames=10, size=32):
    return np.broadcast_to(GREYS[:frames, None, None, None], (frames, size, size, 3))


@pytest.mark.parametrize("mode, value, expected", [
    ("L", 100, (100, 100, 100)), ("RGB", (1, 2, 3), (1, 2, 3)), ("1", 1, (255, 255, 255)),
    ("RGBA", (9, 8, 7, 0), (255, 255, 255)), ("RGBA", (9, 8, 7, 255), (9, 8, 7)), ("LA", (50, 255), (50, 50, 50)),
    ("RGBA", (0, 0, 0, 51), (204, 204, 204)), ("LA", (0, 102), (153, 153, 153)), ("I;16", 100 * 256 + 7, (100, 100, 100)),
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
def test_videos_give_uniform_frames(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    write_video(path, grey_video())
    # 10 frames in 4 parts of 2.5: the middles are 1.25, 3.75, 6.25 and 8.75; in one part: 5.
    frames = read_video(path, 4)
    assert frames.shape == (4, 32, 32, 3) and frames.dtype == np.uint8
    np.testing.assert_allclose(frames.mean((1, 2, 3)), GREYS[[1, 3, 6, 8]], atol=2)
    np.testing.assert_allclose(read_video(path, 1).mean(), GREYS[5], atol=2)
    assert len(read_video(path, 100)) == 10
    # every third frame from the first: 0, 3, 6, 9; of five such there are four
    np.testing.assert_allclose(read_video(path, 5, sampling="stride", stride=3).mean((1, 2, 3)), GREYS[[0, 3, 6, 9]], atol=2)
    # the middle clip of 3 frames at stride 2 spans 5 of 10: it begins at (10 - 5) // 2 = 2
    np.testing.assert_allclose(read_video(path, 3, sampling="clip", stride=2).mean((1, 2, 3)), GREYS[[2, 4, 6]], atol=2)


def test_a_random_clip_lies_anywhere_in_the_video(tmp_path):
    write_video(tmp_path / "x.mp4", grey_video())
    view = dict(sampling="clip", stride=2)
    firsts = set()
    for seed in range(40):
        greys = read_video(tmp_path / "x.mp4", 3, np.random.default_rng(seed), **view).mean((1, 2, 3))
        first = int(np.abs(GREYS - greys[0]).argmin())
        np.testing.assert_allclose(greys, GREYS[[first, first + 2, first + 4]], atol=2)
        firsts.add(first)
    assert firsts == set(range(6))  # the last clip ends with the last frame
    alone = [read_video(tmp_path / "x.mp4", 3, np.random.default_rng(5), **view) for _ in range(2)]
    np.testing.assert_array_equal(*alone)


def test_frames_far_apart_are_found_by_key_frames(tmp_path):
    """60 frames with a key frame every 12: frame k is of grey 2 k + 60, whether it is read on to or sought."""
    film = np.broadcast_to((np.arange(60, dtype=np.uint8) * 2 + 60)[:, None, None, None], (60, 32, 32, 3))
    write_video(tmp_path / "x.mp4", film, options={"g": "12", "bf": "2"})
    for frames in (2, 3, 5, 60):
        expected = (2 * np.arange(frames) + 1) * 60 // (2 * frames) * 2 + 60
        np.testing.assert_allclose(read_video(tmp_path / "x.mp4", frames).mean((1, 2, 3)), expected, atol=2)


def test_variable_frame_rates_are_seen_as_they_play():
    """Ten frames: the first nine are shown for 1/25 s each, the last for 1 s. The middles of four equal stretches of 1.36 s are
    0.17, 0.51, 0.85 and 1.19 s: frame 4 (0.16 to 0.20 s), and then the last one, which is one frame."""
    times = shown.Times(np.array([*range(0, 360, 40), 360]), 1360)
    assert shown.chosen_frames(times, VisionView(frames=4), None).tolist() == [4, 9]


def test_a_video_audio_track_and_its_rate(tmp_path):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    write_video(tmp_path / "x.mp4", grey_video(), np.stack([tone, np.zeros_like(tone)]))
    waveform, rate = read_recording(tmp_path / "x.mp4")
    assert rate == 16000 and waveform.dtype == np.float32 and waveform.ndim == 1
    # The mean of a tone of amplitude 0.5 and silence is a tone of 0.25; the AAC encoder adds at most a frame or two.
    spectrum = np.abs(np.fft.rfft(waveform[2048:14048])) / 6000
    assert abs(np.argmax(spectrum) * 16000 / 12000 - 440) < 2
    assert spectrum.max() == pytest.approx(0.25, abs=0.02)
    assert 15000 < len(waveform) < 18100


@pytest.mark.parametrize("name, subtype, exact", [("x.flac", "PCM_16", 1e-4), ("x.wav", "FLOAT", 1e-7), ("x.ogg", None, 0.1)])
def test_recordings_are_mixed_to_mono(tmp_path, name, subtype, exact):
    left = np.sin(np.arange(4000) / 10).astype(np.float32) * 0.5
    soundfile.write(tmp_path / name, np.stack([left, -0.5 * left], 1), 8000, subtype=subtype)
    waveform, rate = read_recording(tmp_path / name)
    assert rate == 8000 and waveform.dtype == np.float32
    np.testing.assert_allclose(waveform, 0.25 * left, atol=exact)


def test_damaged_and_hostile_media_are_named(tmp_path):
    good = tmp_path / "good.png"
    Image.effect_noise((64, 64), 50).save(good)
    write_video(tmp_path / "good.mp4", grey_video())
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan, np.float32), 8000, subtype="FLOAT")
    soundfile.write(tmp_path / "nothing.wav", np.zeros(0, np.float32), 8000)
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
        "empty.png": b"", "empty.mp4": b"", "empty.flac": b"",
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name in [*files, "nan.wav", "nothing.wav", "gone.png", "gone.wav", "gone.mp4"]:
        kind = {"png": "image", "mp4": "video"}.get(name[-3:], "audio")
        read = {"image": read_image, "video": lambda path: read_video(path, 4), "audio": read_recording}[kind]
        with pytest.raises(BadSample) as error:
            read(tmp_path / name)
        assert error.value.reason == {"gone": "missing file", "empt": "empty"}.get(name[:4], f"unreadable {kind}")
        assert str(tmp_path / name) in error.value.detail
    with pytest.raises(BadSample, match="no audio"):
        read_recording(tmp_path / "good.mp4")


def test_sizes_are_refused_from_the_header(tmp_path):
    small = DecodingSettings(image_pixels=100, audio_samples=50)
    Image.new("L", (11, 10)).save(tmp_path / "x.png")
    write_video(tmp_path / "x.mp4", grey_video())
    soundfile.write(tmp_path / "x.wav", np.zeros(51), 8000)
    for views, name in ((VisionView(), "x.png"), (VisionView(frames=2), "x.mp4"), (AudioView(), "x.wav")):
        role = "audio" if name == "x.wav" else "vision"
        with pytest.raises(BadSample, match="too large.*more than data.decoding."):
            decode({role: media(tmp_path / name)}, Views(**{role: views}), wanted=Wanted(settings=small))


@pytest.mark.parametrize("name", ["x.png", "x.flac"])
def test_a_bomb_is_refused_at_once(tmp_path, name):
    (tmp_path / name).write_bytes(bomb(name))
    tracemalloc.start()
    start = time.monotonic()
    with pytest.raises(BadSample, match="too large"):
        (read_image if name == "x.png" else read_recording)(tmp_path / name)
    assert time.monotonic() - start < 1.0 and tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()


def test_why_a_sample_is_bad_survives_a_process_border():
    error = pickle.loads(pickle.dumps(BadSample("empty", "a/b.png")))
    assert (error.reason, error.detail, str(error)) == ("empty", "a/b.png", "empty: a/b.png")


def test_a_large_jpeg_is_scaled_by_its_decoder(tmp_path):
    # a ramp from black to white over 800 pixels; needed are 100 x 100, so that an eighth, 100 x 75, would be too few
    ramp = np.broadcast_to(np.linspace(0, 255, 800).astype(np.uint8)[None, :, None], (600, 800, 3))
    Image.fromarray(ramp).save(tmp_path / "x.jpg", quality=95)
    small = read_image(tmp_path / "x.jpg", (100, 100))
    assert small.shape == (150, 200, 3)
    np.testing.assert_allclose(small[75, :, 0], ramp[0, 2::4, 0], atol=4)
    assert read_image(tmp_path / "x.jpg", (301, 301)).shape == read_image(tmp_path / "x.jpg").shape == (600, 800, 3)


VIEWS = Views(vision=VisionView(frames=2, height=32, width=32), audio=AudioView(seconds=0.2), text=TextView())


def sample_of(root, row=1):
    film = media(root / f"films/train/{row}.mp4")
    return {"vision": film, "audio": film, "text": [f"films {row}", f"number {row}", f"this is {row}"], "label": row}


def test_decode_follows_the_views(tmp_path):
    raw = sample_of(write_corpus(tmp_path, rows=3, splits=("train",)))
    sample = decode(raw, VIEWS)
    assert set(sample) == {"vision", "audio", "text", "label"}
    assert sample["vision"].shape == (2, 32, 32, 3) and abs(float(sample["vision"].mean()) - 10) < 2
    assert sample["audio"][1] == 16000 and sample["text"] == "films 1" and sample["label"] == 1
    assert set(decode(raw, Views(text=TextView()))) == {"text", "label"}
    drawn = {decode(raw, Views(text=TextView()), np.random.default_rng(seed))["text"] for seed in range(40)}
    assert drawn == {"films 1", "number 1", "this is 1"}


@pytest.mark.parametrize(
    "role, reason", [("vision", "no pictures"), ("audio", "no audio"), ("text", "no text"), ("label", "missing column")]
)
def test_what_a_task_needs_may_be_missing(tmp_path, role, reason):
    raw = sample_of(tmp_path)
    del raw[role]
    with pytest.raises(BadSample, match=reason):
        decode(raw, VIEWS, wanted=Wanted(label=True))


def mixed_rows(tmp_path):
    """Rows of pictures and recordings of several kinds, some of which are of no use: [(row, why it is of none or None)]."""
    root = write_corpus(tmp_path, rows=3, splits=("train",))
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 70, 3), np.uint8)).save(tmp_path / "p.jpg")
    (tmp_path / "torn.jpg").write_bytes((tmp_path / "p.jpg").read_bytes()[:300])
    (tmp_path / "no.wav").write_bytes(b"RIFF but nothing else")
    film, waveform = media(root / "films/train/1.mp4"), ramp(tmp_path)["audio"]
    return [
        (dict(vision=media(root / "images/train/0.png"), audio=waveform, label=0), None),
        (dict(vision=media(tmp_path / "torn.jpg"), audio=waveform, label=1), "unreadable image"),
        (dict(vision=film, audio=film, label=2), None),
        (dict(vision=media(tmp_path / "p.jpg"), audio=media(tmp_path / "no.wav"), label=3), "unreadable audio"),
        (BadSample("bad JSON", "row 5"), "bad JSON"),
        (dict(vision=media(tmp_path / "p.jpg"), audio=waveform), "missing column"),
        (dict(vision=media(tmp_path / "p.jpg"), audio=waveform, label=6), None),
    ]


@pytest.mark.parametrize("held", [1, 20_000, 1 << 23], ids=["each alone", "some together", "all together"])
@pytest.mark.parametrize("cached", [False, True])
def test_samples_are_the_same_in_any_company(tmp_path, monkeypatch, held, cached):
    """What is open together, in whatever parts, is decoded as each is alone, and the bad ones among them stop nobody."""
    monkeypatch.setattr(turns, "_HELD", held)
    rows, cache = mixed_rows(tmp_path), MediaCache(10 if cached else 0)
    views = Views(vision=VisionView(frames=2, height=32, width=32), audio=AudioView(seconds=0.2))
    changes = dict(augment=Augmentation(crop_area=(0.3, 0.9), flip=True, colour=0.3, speed=0.05), wanted=Wanted(label=True))
    for turn in range(2):
        rngs = [np.random.default_rng([turn, seed]) for seed in range(len(rows))]
        together = decode_all([row for row, _ in rows], views, rngs, cache, **changes)
        for place, (row, reason) in enumerate(rows):
            if reason is not None:
                assert together[place].reason == reason and together[place].__traceback__ is None
                continue
            alone = decode(row, views, np.random.default_rng([turn, place]), **changes)
            np.testing.assert_array_equal(together[place]["vision"], alone["vision"])
            np.testing.assert_array_equal(together[place]["audio"][0], alone["audio"][0])
            assert together[place]["audio"][1] == alone["audio"][1] and together[place]["label"] == row["label"]


def test_no_more_is_open_than_memory_has_room_for(tmp_path, monkeypatch):
    """Three pictures of 3 x 90 x 70 = 18,900 bytes reach a bound of 40,000, so three are open at a time, of seven."""
    Image.fromarray(np.zeros((90, 70, 3), np.uint8)).save(tmp_path / "p.png")
    opened, most = [], []
    monkeypatch.setattr(turns, "_HELD", 40_000)
    open_image, pixels = picture.open_image, images.OpenImage.pixels

    def count_open(*given):
        opened.append(True)
        return open_image(*given)

    def count_closed(image):
        most.append(len(opened))
        opened.pop()
        return pixels(image)

    monkeypatch.setattr(picture, "open_image", count_open)
    monkeypatch.setattr(images.OpenImage, "pixels", count_closed)
    decode_all([{"vision": media(tmp_path / "p.png")}] * 7, Views(vision=VisionView(height=32, width=32)), [None] * 7)
    assert most == [3, 2, 1, 3, 2, 1, 1]


def ramp(tmp_path, name="x.wav", seconds=4.0, rate=8000):
    """A recording whose value tells its place: sample n is n / N."""
    total = round(seconds * rate)
    soundfile.write(tmp_path / name, np.arange(total) / total, rate, subtype="FLOAT" if name.endswith("wav") else None)
    return {"audio": media(tmp_path / name)}


@pytest.mark.parametrize("name", ["x.wav", "x.flac"])
def test_training_hears_a_random_window_of_a_long_recording(tmp_path, name):
    raw, view, starts = ramp(tmp_path, name), Views(audio=AudioView(seconds=0.5)), []
    for seed in range(30):
        waveform, rate = decode(raw, view, np.random.default_rng(seed))["audio"]
        assert len(waveform) == 4000 and rate == 8000
        start = round(float(waveform[0]) * 32000)
        np.testing.assert_allclose(waveform, np.arange(start, start + 4000) / 32000, atol=1e-4)  # 16 bits
        starts.append(start)
    assert min(starts) < 6000 and max(starts) > 22000  # of 0 to 28000


def test_a_window_of_a_video_audio_track_is_sought(tmp_path):
    """Twenty tones of a tenth of a second: the pitch of a window tells where it was taken."""
    tones = np.concatenate([np.sin(2 * np.pi * 400 * (k + 1) * np.arange(1600) / 16000) * 0.5 for k in range(20)])
    write_video(tmp_path / "x.mp4", grey_video(), tones[None])
    raw, view, found = {"audio": media(tmp_path / "x.mp4")}, Views(audio=AudioView(seconds=0.1)), set()
    for seed in range(12):
        place = float(np.random.default_rng(seed).random())
        waveform, rate = decode(raw, view, np.random.default_rng(seed))["audio"]
        assert rate == 16000 and len(waveform) == 1600
        begin = place * (2.0 - 0.1)  # seconds; the encoder's priming moves it by at most 0.07 s
        pitch = np.abs(np.fft.rfft(waveform * np.hanning(1600))).argmax() * 10
        assert min(abs(begin + shift - (pitch / 400 - 1) * 0.1) for shift in (0.0, 0.07, -0.07)) <= 0.11
        found.add(round(pitch / 400))
    assert len(found) > 5


def test_evaluation_hears_all_of_a_long_recording(tmp_path):
    raw = ramp(tmp_path, seconds=1.3)
    windows = [sample["audio"][0] for sample in decode_windows(raw, Views(audio=AudioView(seconds=0.5)))]
    # 10,400 samples in windows of 4,000: from 0, 4,000, and the last one from 6,400
    assert [round(float(window[0]) * 10400) for window in windows] == [0, 4000, 6400]
    assert {len(window) for window in windows} == {4000}
    assert len(decode_windows(raw, Views(audio=AudioView(seconds=1.3)))) == 1


def test_speed_changes_the_rate_by_whole_percents(tmp_path):
    raw, view = ramp(tmp_path, seconds=0.4), Views(audio=AudioView(seconds=1.0))
    rates = {decode(raw, view, np.random.default_rng(s), augment=Augmentation(speed=0.03))["audio"][1] for s in range(60)}
    assert rates == {8000 + 80 * percent for percent in range(-3, 4)}
    assert decode(raw, view, np.random.default_rng(0))["audio"][1] == 8000


def test_pictures_are_changed_as_asked_and_the_same_in_all_frames(tmp_path):
    left_dark = np.zeros((48, 64, 3), np.uint8)
    left_dark[:, 32:] = 200
    Image.fromarray(left_dark).save(tmp_path / "x.png")
    write_video(tmp_path / "x.mp4", np.stack([left_dark] * 4))
    view = Views(vision=VisionView(frames=4, height=32, width=32))
    rngs = lambda: (np.random.default_rng(seed) for seed in range(30))  # noqa: E731
    for name in ("x.png", "x.mp4"):
        raw = {"vision": media(tmp_path / name)}
        plain = decode(raw, view)["vision"]
        assert plain.shape[1:] == (48, 64, 3)
        np.testing.assert_array_equal(decode(raw, view, np.random.default_rng(0))["vision"], plain)
        crops = [decode(raw, view, rng, augment=Augmentation(crop_area=(0.3, 0.6)))["vision"] for rng in rngs()]
        assert {crop.shape[1:] for crop in crops} == {(32, 32, 3)} and len({crop.mean() for crop in crops}) > 20
        flips = [decode(raw, view, rng, augment=Augmentation(flip=True))["vision"] for rng in rngs()]
        mirrored = [bool(clip[0, 0, 0, 0] > 100) for clip in flips]
        assert 5 < sum(mirrored) < 25
        colours = [decode(raw, view, rng, augment=Augmentation(colour=0.4))["vision"] for rng in rngs()]
        assert len({int(clip[0, 0, -1, 0]) for clip in colours}) > 10
        for clip in (*crops, *flips, *colours):
            assert np.abs(clip.astype(int) - clip[:1]).max() <= 3  # the codec's own noise


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
    raw = {"vision": media(tmp_path / "images/train/0.png")}
    views, cache = Views(vision=VisionView(frames=1, height=32, width=32)), MediaCache(1)
    first = decode(raw, views, cache=cache)["vision"]
    (tmp_path / "images/train/0.png").unlink()
    np.testing.assert_array_equal(decode(raw, views, cache=cache)["vision"], first)
    with pytest.raises(ValueError, match="read-only"):
        first[:] = 0
