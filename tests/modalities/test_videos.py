"""Frame-exact decoding of every container, with its audio: each frame shows its number (numbered_videos.py)."""

import io
import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from helpers.numbered_videos import FRAMES, HEIGHT, KINDS, SILENT, WIDTH, numbered, numbers_of, video_bytes
from helpers.ranks import run_ranks
from imp_ds.modalities.audio.facts import audio_facts
from imp_ds.modalities.audio.recordings import open_recording
from imp_ds.modalities.decoding_settings import DecodingSettings
from imp_ds.modalities.media import BadSample, Media
from imp_ds.modalities.media_cache import MediaCache
from imp_ds.modalities.views import Augmentation
from imp_ds.modalities.vision.clips import read_clips
from imp_ds.modalities.vision.facts import vision_facts
from imp_ds.modalities.vision.image import open_image
from imp_ds.modalities.vision.video import read_video
from imp_ds.modalities.vision.view import VisionView


def shown(name: str, data: bytes, frames: int) -> list[int]:
    media = Media(f"x.{name.rpartition('.')[2]}", data=data)
    return numbers_of(read_video(media, VisionView(frames=frames), None, MediaCache(0)))


# Of 50 frames the middles of n equal stretches are the frames (2 k + 1) 50 / (2 n), rounded down.
EXPECTED = {
    1: [25],
    3: [8, 25, 41],
    4: [6, 18, 31, 43],
    7: [3, 10, 17, 25, 32, 39, 46],
    FRAMES: list(range(FRAMES)),
}


@pytest.mark.parametrize("name", KINDS)
def test_each_container_gives_the_frames_of_the_table(name):
    data = video_bytes(name, tone=name not in SILENT)
    assert {frames: shown(name, data, frames) for frames in EXPECTED} == EXPECTED


def test_digital_video_is_frame_exact():
    """A DV stream has the size of a television's picture: numbers are drawn over all of it, and read from a smaller one."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="dv") as container:
        stream = container.add_stream("dvvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = 720, 576, "yuv420p"
        for number in range(FRAMES):
            wide = Image.fromarray(numbered(number)).resize((720, 576), Image.Resampling.NEAREST)
            frame = av.VideoFrame.from_image(wide)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    media = Media("x.dv", data=buffer.getvalue())
    clip_THW3 = read_video(media, VisionView(frames=4), None, MediaCache(0))
    small = [np.asarray(Image.fromarray(picture).resize((WIDTH, HEIGHT))) for picture in clip_THW3]
    assert numbers_of(np.stack(small)) == EXPECTED[4]


@pytest.mark.parametrize("suffix", ["", ".bin", ".png", ".wav", ".avi"])
@pytest.mark.parametrize("name", ["mp4", "mkv", "ts", "mpeg1.mpg", "mxf", "wmv", "raw.h264"])
def test_videos_are_known_by_their_content(name, suffix):
    media = [Media(f"x{suffix}", data=video_bytes(name)), Media("y.png", data=_png())]
    video, image = read_clips(media, VisionView(frames=4), [None, None], MediaCache(0), Augmentation())
    assert numbers_of(video) == EXPECTED[4] and numbers_of(image) == [77]
    assert vision_facts(media[0])["width"] == WIDTH


def test_images_are_known_by_their_content_where_their_name_is_a_videos():
    """An animation of the numbers 3 and 5, and a still picture; what is neither is named as the video that it should be."""
    frames, animated = [Image.fromarray(numbered(number)) for number in (3, 5)], io.BytesIO()
    frames[0].save(animated, "GIF", save_all=True, append_images=frames[1:], duration=40)
    media = [Media("a.mp4", data=animated.getvalue()), Media("b.mp4", data=_png()), Media("c.mp4", data=b"nothing at all" * 99)]
    animation, still, neither = read_clips(media, VisionView(frames=2), [None] * 3, MediaCache(0), Augmentation())
    assert numbers_of(animation) == [3, 5] and numbers_of(still) == [77]
    assert neither.reason == "unreadable video"


def _png() -> bytes:
    out = io.BytesIO()
    Image.fromarray(numbered(77)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("name", ["mp4", "mov", "mkv", "ts", "open-gop.mkv", "webm", "flv"])
def test_variable_frame_rates_are_frame_exact(name):
    """Frames 0 to 39 last 1/25 s each, frame 40 + k begins at 1.6 + k s. Where the last one ends only some containers say:
    after 10.64 s, or 11.6 s. The middles of four stretches are 1.33, 3.99, 6.65, 9.31 s, in frames 33, 42, 45, 47; or 1.45, 4.35,
    7.25, 10.15 s, in frames 36, 42, 45, 48."""
    times = [*range(40), *(40 + 25 * n for n in range(10))]
    data = video_bytes(name, times)
    assert shown(name, data, FRAMES) == list(range(FRAMES))
    assert shown(name, data, 4) in ([33, 42, 45, 47], [36, 42, 45, 48])


@pytest.mark.parametrize("name, first", [("mkv", 1000), ("ts", 1000), ("mp4", 50), ("mkv", -3), ("ts", -3)])
def test_videos_that_do_not_begin_at_zero(name, first):
    data = video_bytes(name, [first + n for n in range(FRAMES)])
    assert shown(name, data, 4) == EXPECTED[4]


def test_frames_that_an_edit_list_hides_are_not_seen():
    """What lies before zero in an mp4 is hidden by an edit list: of frames 3 to 49 the middles of four stretches of 11.75 are
    3 + 5.875, 17.625, 29.375 and 41.125."""
    data = video_bytes("mp4", [n - 3 for n in range(FRAMES)])
    assert shown("mp4", data, FRAMES) == list(range(3, FRAMES))
    assert shown("mp4", data, 4) == [8, 20, 32, 44]


@pytest.mark.parametrize("name", [name for name in KINDS if name not in SILENT])
def test_the_audio_of_each_container_is_read(name):
    """Two seconds of 440 Hz; an encoder adds or loses a few frames. A window is what the whole recording has there."""
    media = Media(f"x.{name.rpartition('.')[2]}", data=video_bytes(name, tone=True))
    full_N, rate = open_recording(media).samples()
    assert rate == 48000 and 94000 <= len(full_N) <= 96000 + 3 * 2048
    assert np.abs(np.fft.rfft(full_N[9600:57600])).argmax() == 440  # of one second: bins of 1 Hz
    window_N, _ = open_recording(media).samples(24000, 4800)
    assert len(window_N) == 4800
    # the first packets after a seek may be coded by those before them
    np.testing.assert_allclose(window_N[2400:], full_N[26400:28800], atol=0.02)
    facts = audio_facts(media)
    assert facts["samples a second"] == 48000 and facts["channels"] == 1 and 1.7 < facts["audio seconds"] < 2.2


# a, b, c, d of the display matrix (x' = a x + c y, y' = b x + d y), and which quarter of the stored frame (0 1 / 2 3) is shown
# top left, top right, bottom left, bottom right
TURNS = {
    "as stored": ((1, 0, 0, 1), (0, 1, 2, 3)), "a quarter to the right": ((0, 1, -1, 0), (2, 0, 3, 1)),
    "upside down": ((-1, 0, 0, -1), (3, 2, 1, 0)), "a quarter to the left": ((0, -1, 1, 0), (1, 3, 0, 2)),
    "mirrored": ((-1, 0, 0, 1), (1, 0, 3, 2)), "mirrored down": ((1, 0, 0, -1), (2, 3, 0, 1)),
    "transposed": ((0, 1, 1, 0), (0, 2, 1, 3)), "transposed at the other diagonal": ((0, -1, -1, 0), (3, 1, 2, 0)),
}  # fmt: skip


@pytest.mark.parametrize("matrix, quarters", TURNS.values(), ids=TURNS.keys())
def test_frames_are_turned_by_the_display_matrix(tmp_path, matrix, quarters):
    greys = [20, 90, 160, 230]
    frame_HW3 = np.zeros((32, 64, 3), np.uint8)
    for quarter, grey in enumerate(greys):
        frame_HW3[16 * (quarter // 2) :, 32 * (quarter % 2) :] = 0
        frame_HW3[16 * (quarter // 2) :][:16, 32 * (quarter % 2) :][:, :32] = grey
    path = tmp_path / "x.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HW3, format="rgb24")))
        container.mux(stream.encode())
    data, unit = bytearray(path.read_bytes()), struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    a, b, c, d = (65536 * value for value in matrix)
    at = data.rfind(unit)  # of the track, after that of the movie
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (seen_HW3,) = read_video(Media("x.mp4", data=bytes(data)), VisionView(frames=1), None, MediaCache(0))
    height, width = (64, 32) if b else (32, 64)
    assert seen_HW3.shape == (height, width, 3)
    corners = [seen_HW3[y, x].mean() for y in (3, height - 4) for x in (3, width - 4)]
    np.testing.assert_allclose(corners, [greys[quarter] for quarter in quarters], atol=6)


MANY_CHANNELS = """
import io, sys, av, numpy as np
from imp_ds.modalities.vision.clips import read_clips
from imp_ds.modalities.audio.recordings import open_recording
from imp_ds.modalities.media import Media
for layout, channels in (("5.1", 6), ("7.1", 8), ("7.1.4", 12), ("hexadecagonal", 16), ("22.2", 24)):
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mov") as container:
        stream = container.add_stream("pcm_s16le", rate=16000, layout=layout)
        ramp = np.arange(channels, dtype=np.int16) * 1000  # of channel c: 1000 c, of all: 500 (channels - 1)
        frame = av.AudioFrame.from_ndarray(np.tile(ramp, 1000)[None], format="s16", layout=layout)
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    samples_N, rate = open_recording(Media("x.mov", data=buffer.getvalue())).samples()
    assert len(samples_N) == 1000 and rate == 16000
    np.testing.assert_allclose(samples_N * 32768, 500 * (channels - 1), rtol=1e-4)
print("read")
"""


def execute(code: str) -> None:
    exec(code, {})


def test_any_number_of_channels_is_read(tmp_path):
    """In a process of its own, which a crash would end."""
    assert run_ranks(execute, MANY_CHANNELS, ranks=1, folder=tmp_path).outputs[0].strip() == "read"


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "name with a null", "name too long"])
@pytest.mark.parametrize("suffix", ["png", "mp4", "wav", "m4a"])
def test_what_is_no_file_is_refused_at_once(tmp_path, kind, suffix):
    path = tmp_path / f"x.{suffix}"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path = Path("/dev/zero")
    else:
        path = tmp_path / ("\0" if kind == "name with a null" else "x" * 300)
    media = Media(f"x.{suffix}", path=path)
    read = {"png": open_image, "mp4": lambda one: read_video(one, VisionView(), None, MediaCache(0))}.get(suffix, open_recording)
    with pytest.raises(BadSample, match="unreachable"):
        read(media)
    assert (audio_facts if suffix in ("wav", "m4a") else vision_facts)(media) == {}


def wav(rate: int, value: float = 0.25) -> bytes:
    data = np.full(4000, value, np.float32).tobytes()
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 1, rate, 4 * rate, 4, 32)  # mono, 32-bit floats
    return struct.pack("<4sI4s", b"RIFF", 36 + len(data), b"WAVE") + form + struct.pack("<4sI", b"data", len(data)) + data


@pytest.mark.parametrize("rate", [1, 999, 400_001, 10_000_019])
@pytest.mark.parametrize("name", ["x.wav", "x.m4a"])  # by libsndfile, by FFmpeg
def test_sampling_rates_out_of_bounds_are_refused(name, rate):
    with pytest.raises(BadSample, match="too large.*audio_min_rate"):
        open_recording(Media(name, data=wav(rate)))
    wide = DecodingSettings(audio_min_rate=1, audio_max_rate=20_000_000)
    assert open_recording(Media(name, data=wav(rate)), wide).samples()[1] == rate


@pytest.mark.parametrize("name", ["x.wav", "x.m4a"])  # by libsndfile, by FFmpeg
def test_recordings_that_are_too_long_are_refused(name):
    """A quarter of a second, 4,000 samples at 16 kHz. A window of it is read all the same."""
    media = Media(name, data=wav(16000))
    assert len(open_recording(media, DecodingSettings(audio_seconds=0.25)).samples()[0]) == 4000
    with pytest.raises(BadSample, match="too large.*longer than data.decoding.audio_seconds"):
        open_recording(media, DecodingSettings(audio_seconds=0.2499)).samples()
    assert len(open_recording(media, DecodingSettings(audio_seconds=0.01)).samples(0, 100)[0]) == 100


@pytest.mark.parametrize("value", [1e38, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["x.wav", "x.m4a"])
def test_values_that_no_recording_has_are_refused(name, value):
    with pytest.raises(BadSample, match="unreadable audio.*finite"):
        open_recording(Media(name, data=wav(8000, value))).samples()


@pytest.mark.parametrize("limit, more", [("image_pixels", 4095), ("video_pixels", 8191), ("video_frames", FRAMES - 1)])
def test_frames_beyond_a_bound_are_refused(limit, more):
    """Two frames of 128 x 32 = 4096 pixels are wanted of 50."""
    media = Media("x.mkv", data=video_bytes("mkv"))
    with pytest.raises(BadSample, match=f"too large.*{limit}"):
        read_video(media, VisionView(frames=2), None, MediaCache(0), DecodingSettings(**{limit: more}))
    read_video(media, VisionView(frames=2), None, MediaCache(0), DecodingSettings(**{limit: more + 1}))
