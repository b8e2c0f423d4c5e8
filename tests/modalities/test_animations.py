"""Animated GIF, WebP, PNG and AVIF as videos: which frames are seen, by their durations."""

import io

import numpy as np
import pytest
from PIL import Image

from imp_ds.modalities.decoding_settings import DEFAULTS, DecodingSettings
from imp_ds.modalities.media import BadSample, Media
from imp_ds.modalities.media_cache import MediaCache
from imp_ds.modalities.views import Augmentation
from imp_ds.modalities.vision.clips import read_clips
from imp_ds.modalities.vision.image import read_image
from imp_ds.modalities.vision.view import VisionView

GREYS = [10, 60, 110, 160, 210]
# begin at 0, 100, 800, 850 and 900 ms, and end at 1,000 ms
DURATIONS = [100, 700, 50, 50, 100]
KINDS = {"GIF": {}, "WEBP": {"lossless": True}, "PNG": {}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}


def frames(colours=GREYS, mode="RGB", size=(32, 16)) -> list[Image.Image]:
    return [Image.new(mode, size, colour if isinstance(colour, tuple) else (colour,) * len(mode)) for colour in colours]


def saved(kind: str, pictures: list[Image.Image], duration=DURATIONS, **options) -> bytes:
    buffer = io.BytesIO()
    pictures[0].save(
        buffer, kind, save_all=True, append_images=pictures[1:], duration=duration, **KINDS.get(kind, {}), **options
    )  # fmt: skip
    return buffer.getvalue()


def clip(data: bytes, rng=None, settings=DEFAULTS, **view) -> np.ndarray | BadSample:
    media = Media("x", data=data)
    return read_clips([media], VisionView(**view), [rng], MediaCache(0), Augmentation(), settings)[0]


def greys(data: bytes, rng=None, **view) -> list[int]:
    """The places in GREYS of what the frames show."""
    shown_T = clip(data, rng, **view)[:, 4:-4, 4:-4].mean((1, 2, 3))
    places = [int(np.abs(np.array(GREYS) - grey).argmin()) for grey in shown_T]
    assert np.abs(shown_T - np.array(GREYS)[places]).max() < 4  # AVIF is not lossless
    return places


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_seen_as_long_as_they_last(kind):
    data = saved(kind, frames())
    # The middle, 500 ms, is in frame 1. Of two halves: 250, 750 ms, both in frame 1. Of four quarters: 125, 375, 625, 875 ms, in
    # frames 1, 1, 1 and 3. Of more than there are: all.
    assert [greys(data, frames=n) for n in (2, 4, 5, 9)] == [[1], [1, 3], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    # Every second place at a constant rate, 200 ms each: 0, 400 and 800 ms, in frames 0, 1 and 2.
    assert greys(data, frames=3, sampling="stride", stride=2) == [0, 1, 2]
    # The middle clip of two at stride 2 spans 3 of 5 places: from (5 - 3) // 2 = 1, 200 and 600 ms, both in frame 1.
    assert greys(data, frames=2, sampling="clip", stride=2) == [1]
    # A view of one frame sees the first.
    assert greys(data, frames=1) == [0]


@pytest.mark.parametrize("kind", KINDS)
def test_frames_without_a_time_last_a_tenth_of_a_second(kind):
    """Frames of 0 ms count as 100: these begin at 0, 100, 200, 700 and 800 ms and end at 900; two halves, 225 and 675 ms, both
    lie in frame 2, and of three thirds 150, 450 and 750 ms in frames 1, 2 and 3."""
    data = saved(kind, frames(), [0, 0, 500, 0, 0]) if kind != "AVIF" else saved(kind, frames(), [100, 100, 500, 100, 100])
    assert greys(data, frames=2) == [2] and greys(data, frames=3) == [1, 2, 3]


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "AVIF"])
def test_sixty_frames_a_second_are_no_frames_without_a_time(kind):
    """17 ms each but one of 400: the middle, (4 x 17 + 400) / 2 = 234 ms, lies in frame 1, from 17 to 417 ms."""
    assert greys(saved(kind, frames(), [17, 400, 17, 17, 17]), frames=2) == [1]


def test_the_picture_before_an_animated_png_is_none_of_its_frames():
    """One for those who know no animations, then the five frames; as a picture it is what is seen."""
    data = saved("PNG", [*frames([250]), *frames()], default_image=True)
    assert greys(data, frames=5) == [0, 1, 2, 3, 4] and greys(data, frames=2) == [1]
    alone = saved("PNG", frames([250, 60]), [100], default_image=True)
    assert clip(data, frames=1).mean() == clip(alone, frames=1).mean() == 250
    assert clip(alone, frames=4).shape == (1, 16, 32, 3)  # one frame is no animation


@pytest.mark.parametrize("kind", ["TIFF", "MPO"])
def test_several_pictures_in_a_file_are_no_video(kind):
    """A phone's JPEG file may hold a second picture, for depth or brightness."""
    pictures, buffer = frames([10, 210]), io.BytesIO()
    pictures[0].save(buffer, kind, save_all=True, append_images=pictures[1:])
    assert clip(buffer.getvalue(), frames=4).shape == (1, 16, 32, 3) and greys(buffer.getvalue(), frames=4) == [0]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
def test_transparent_frames_lie_on_the_ground(kind):
    """A transparent frame, and one of red."""
    pictures = frames([(0, 0, 0, 0), (255, 0, 0, 255)], "RGBA")
    data = saved(kind, pictures, [100, 100], **({"disposal": 2} if kind in ("GIF", "PNG") else {}))
    first, second = clip(data, settings=DecodingSettings(alpha_ground=(10, 200, 30)), frames=2)[:, 8, 16].astype(int)
    assert np.abs(first - (10, 200, 30)).max() < 4 and np.abs(second - (255, 0, 0)).max() < 4


@pytest.mark.parametrize("kind", ["WEBP", "PNG"])
def test_frames_are_upright_as_pictures_are(kind):
    """EXIF 6: the stored left column is the upright top row."""
    exif, stored = Image.Exif(), np.zeros((8, 16, 3), np.uint8)
    exif[0x0112] = 6
    stored[:, :8] = 255
    data = saved(kind, [Image.fromarray(stored), Image.fromarray(stored // 2)], [100, 100], exif=exif)
    upright = clip(data, frames=2)
    assert upright.shape == (2, 16, 8, 3)
    assert [(frame[:8].min(), frame[8:].max()) for frame in upright] == [(255, 0), (127, 0)]
    np.testing.assert_array_equal(upright[0], read_image(Media("x", data=data)))


def test_a_random_clip_lies_anywhere():
    """Five frames of 100 ms: two at stride 2 begin at frame 0, 1 or 2."""
    data = saved("GIF", frames(), 100)
    view = dict(frames=2, sampling="clip", stride=2)
    assert {tuple(greys(data, np.random.default_rng(seed), **view)) for seed in range(20)} == {(0, 2), (1, 3), (2, 4)}


def gif_with_a_frame_of(width: int, height: int, place: int, disposal: int) -> bytes:
    """Two frames on a canvas of 32 x 16; the frame at `place` says that it is so large."""
    data = saved("GIF", frames(GREYS[:2]), disposal=disposal)
    image = b"\x2c\0\0\0\0"  # at 0, 0; then width and height
    parts = data.split(image + b"\x20\0\x10\0")
    assert len(parts) == 3
    sizes = [image + b"\x20\0\x10\0"] * 2
    sizes[place] = image + width.to_bytes(2, "little") + height.to_bytes(2, "little")
    return parts[0] + sizes[0] + parts[1] + sizes[1] + parts[2]


@pytest.mark.parametrize("place, disposal", [(0, 2), (1, 2), (1, 3)])
def test_a_frame_that_makes_the_canvas_too_large_takes_no_memory(monkeypatch, place, disposal):
    """60,000 x 60,000 pixels, of 3.6 GB: no picture of more than the bound is ever made, whatever the header says."""
    made = []

    def noted(make):
        def noting(mode, size, *colour):
            made.append(size[0] * size[1])
            return make(mode, size if made[-1] <= DEFAULTS.image_pixels else (1, 1), *colour)

        return noting

    for name in ("fill", "new"):
        monkeypatch.setattr(Image.core, name, noted(getattr(Image.core, name)))
    found = clip(gif_with_a_frame_of(60_000, 60_000, place, disposal), frames=2)
    assert isinstance(found, BadSample) and found.reason == "too large" and "data.decoding.image_pixels" in found.detail
    assert max(made, default=0) <= DEFAULTS.image_pixels


def test_too_many_frames_or_pixels_are_refused():
    data = saved("GIF", frames())  # 5 x 512 pixels
    for limit in ({"video_frames": 4}, {"video_pixels": 5 * 512 - 1}, {"image_pixels": 511}):
        found = clip(data, settings=DecodingSettings(**limit), frames=5)
        assert isinstance(found, BadSample) and found.reason == "too large"
    assert len(clip(data, settings=DecodingSettings(video_frames=5, video_pixels=5 * 512, image_pixels=512), frames=5)) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_an_animation_that_is_cut_is_named(kind):
    noise = np.random.default_rng(0).integers(0, 256, (4, 16, 32, 3), dtype=np.uint8)
    data = saved(kind, [Image.fromarray(frame) for frame in noise], 100)
    found = clip(data[: len(data) // 2], frames=4)
    assert isinstance(found, BadSample) and found.reason == "unreadable image"
