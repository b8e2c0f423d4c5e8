"""Frames of a film, by their timestamps: uniformly, by stride, or a clip (IMP, section 4.1: stride 2).

The packets are read once without decoding, which tells when each frame is shown and where key frames are: so variable frame
rates are seen as they play, and what lies between far apart frames is skipped by a seek.

Shapes: N frames of the film, T wanted ones, H height, W width.
"""

from typing import NamedTuple

import numpy as np
from av.video.reformatter import VideoReformatter

from imp_ds.data.cache import MediaCache
from imp_ds.data.decoding.container import opened
from imp_ds.data.decoding.image import MAX_IMAGE_PIXELS
from imp_ds.data.samples import BadSample, Media
from imp_ds.tasks import VisionView

FILMS = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp"}
MAX_FILM_FRAMES = 1 << 20  # more than nine hours at 30 frames per second
# A seek throws away what the decoder holds and reads the key frame anew: it pays from so many skipped frames on
# (benchmarks/results/decoding.md).
SEEK_FROM = 8


class Times(NamedTuple):
    """When the frames of a film are shown, in units of its stream: start_N ascending, the end of the last, the key frames."""

    start_N: np.ndarray
    end: int
    key_K: np.ndarray


def read_film(media: Media, view: VisionView, rng: np.random.Generator | None, cache: MediaCache) -> np.ndarray:
    """The frames that `view` wants of a film (all that there are, when it wants more): uint8 [T, H, W, 3].

    A view that draws a clip is not kept in `cache`. Raises BadSample for what is no film, is damaged or too large.
    """
    if view.sampling == "clip" and rng is not None:
        return _read(media, view, rng)
    wanted = (view.frames, view.sampling, view.stride)
    return cache.get((media.name, wanted), lambda: _read(media, view, None))


def _read(media: Media, view: VisionView, rng: np.random.Generator | None) -> np.ndarray:
    with opened(media, "unreadable film") as container:
        if not container.streams.video:
            raise BadSample("no pictures", media.name)
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # several loader workers share the cores
        if stream.width * stream.height > MAX_IMAGE_PIXELS or stream.frames > MAX_FILM_FRAMES:
            size = f"{stream.frames} frames of {stream.width} x {stream.height} are too many"
            raise BadSample("too large", f"{media.name}: {size}")
        times = _times(container, stream, media)
        clip = _decode(container, stream, times, chosen_frames(times, view, rng))
    if not clip:
        raise BadSample("unreadable film", f"{media.name}: no frame can be decoded")
    if len({picture.shape for picture in clip}) > 1:
        raise BadSample("unreadable film", f"{media.name}: its frames differ in size")
    return np.stack(clip)


def _times(container, stream, media: Media) -> Times:
    """The times of all frames, from the packets; the film is wound back."""
    shown, keys, longest = [], [], 1
    for packet in container.demux(stream):
        if packet.size == 0 or packet.is_corrupt:
            continue
        time = packet.pts if packet.pts is not None else packet.dts if packet.dts is not None else len(shown)
        shown.append(time)
        if packet.is_keyframe:
            keys.append(time)
        longest = packet.duration or longest
        if len(shown) > MAX_FILM_FRAMES:
            raise BadSample("too large", f"{media.name}: more than {MAX_FILM_FRAMES} frames")
    if not shown:
        raise BadSample("unreadable film", f"{media.name}: it has no frames")
    container.seek(min(shown), stream=stream)
    start_N = np.unique(np.array(shown, dtype=np.int64))
    return Times(start_N, int(start_N[-1]) + longest, np.unique(np.array(keys, dtype=np.int64)))


def chosen_frames(times: Times, view: VisionView, rng: np.random.Generator | None) -> np.ndarray:
    """Which frames are wanted, ascending and without repetition, int64 [T].

    Of a constant frame rate "uniform" takes the middles of `view.frames` equal stretches, as `vision.clip_indices` does.
    """
    total, begin, duration = len(times.start_N), int(times.start_N[0]), times.end - int(times.start_N[0])
    if view.sampling == "uniform":
        if total <= view.frames:
            return np.arange(total)
        at_T = [begin + (2 * k + 1) * duration // (2 * view.frames) for k in range(view.frames)]
    else:
        first = 0
        if view.sampling == "clip":
            spare = max(0, total - (view.frames - 1) * view.stride - 1)
            first = spare // 2 if rng is None else int(rng.integers(spare + 1))
        places = [first + k * view.stride for k in range(view.frames)]
        at_T = [begin + place * duration // total for place in places if place < total]
    return np.unique(np.searchsorted(times.start_N, at_T, side="right") - 1)


def _decode(container, stream, times: Times, wanted_T: np.ndarray) -> list[np.ndarray]:
    """The wanted frames as RGB. Frames that are shown at none of the known times (damaged streams) are passed over."""
    found, to_rgb24 = {}, VideoReformatter()  # one for all frames, without threads: each start of them costs 0.2 ms
    position, frames = -1, container.decode(stream)
    for wanted in wanted_T.tolist():
        time = int(times.start_N[wanted])
        key = int(np.searchsorted(times.key_K, time, side="right")) - 1
        if key >= 0 and int(np.searchsorted(times.start_N, times.key_K[key])) - position > SEEK_FROM:
            container.seek(int(times.key_K[key]), stream=stream)
            frames = container.decode(stream)
        for frame in frames:
            position = int(np.searchsorted(times.start_N, frame.pts)) if frame.pts is not None else position + 1
            if position >= wanted:
                found[wanted] = to_rgb24.reformat(frame, format="rgb24", threads=1).to_ndarray()
                break
    return list(found.values())
