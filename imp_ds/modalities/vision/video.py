"""Frames of a video, by their timestamps, as a player shows them.

The packets are read once without decoding, which tells when each frame is shown and where key frames are: so variable frame
rates are seen as they play, and what lies between far apart frames is skipped by a seek. A container that does not say when its
frames are shown (AVI, MPEG program streams, MXF, raw streams) is decoded from its beginning, and its frames are counted.

Shapes: N frames of the video, T wanted ones, H height, W width.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from imp_ds.modalities.container import finds_times, opened, tells_times
from imp_ds.modalities.decoding_settings import DEFAULTS, DecodingSettings
from imp_ds.modalities.media import BadSample, Media
from imp_ds.modalities.media_cache import MediaCache
from imp_ds.modalities.vision.image import check_pixels
from imp_ds.modalities.vision.times import Times, chosen_frames
from imp_ds.modalities.vision.view import VisionView

VIDEOS = {
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".vob", ".ts", ".m2ts", ".mts", ".flv", ".wmv", ".asf",
    ".3gp", ".3g2", ".ogv", ".f4v", ".ismv", ".mxf", ".gxf", ".dv", ".nut", ".ivf", ".obu", ".rm", ".rmvb", ".swf", ".wtv",
    ".nsv", ".y4m", ".h264", ".264", ".h265", ".hevc",
}  # fmt: skip
_IMAGES = {"avif", "avis", "heic", "heix", "hevc", "mif1", "msf1"}  # brands of images, also animated, in the container of MP4
# A seek throws away what the decoder holds and reads the key frame anew: it pays from so many skipped frames on
# (benchmarks/results/decoding.md).
SEEK_FROM = 8


class Packets(NamedTuple):
    """What the packets of a video say: when its frames are shown, and of those the key frames, in units of its stream.

    timed: whether every packet says when it is shown; else `times` counts frames.
    """

    times: Times
    key_K: np.ndarray
    timed: bool


def read_video(
    media: Media, view: VisionView, rng: np.random.Generator | None, cache: MediaCache,
    settings: DecodingSettings = DEFAULTS,
) -> np.ndarray:  # fmt: skip
    """The frames that `view` wants of a video (all that there are, when it wants more), upright: uint8 [T, H, W, 3].

    A view that draws a clip is not kept in `cache`. Raises BadSample for what is no video, is damaged or too large.
    """
    if view.sampling == "clip" and rng is not None:
        return _read(media, view, rng, settings)
    wanted = (view.frames, view.sampling, view.stride)
    return cache.get((media.name, wanted), lambda: _read(media, view, None, settings))


def is_video(media: Media) -> bool:
    """Whether it is a video by its content; a damaged AVIF or HEIC image is none."""
    try:
        with opened(media, "unreadable video") as container:
            return container.metadata.get("major_brand") not in _IMAGES and video_stream(container) is not None
    except BadSample:
        return False


def _read(media: Media, view: VisionView, rng: np.random.Generator | None, settings: DecodingSettings) -> np.ndarray:
    with opened(media, "unreadable video") as container:
        stream = _open_stream(container, media, settings)
        packets = _packets(container, stream, media, settings)
        wanted_T = chosen_frames(packets.times, view, rng)
        decoder = _Decoder(container, stream, media, packets, settings)
        clip = decoder.seeking(wanted_T) if packets.timed and finds_times(container) else None
    if clip is None:
        with opened(media, "unreadable video") as container:
            clip = _Decoder(container, _open_stream(container, media, settings), media, packets, settings).straight(wanted_T)
    if not clip:
        raise BadSample("unreadable video", f"{media.name}: no frame can be decoded")
    if len({picture.shape for picture in clip}) > 1:
        raise BadSample("unreadable video", f"{media.name}: its frames differ in size")
    return np.stack(clip)


def _open_stream(container, media: Media, settings: DecodingSettings):
    stream = video_stream(container)
    if stream is None:
        raise BadSample("no pictures", media.name)
    stream.codec_context.thread_count = 1  # several loader workers share the cores
    check_pixels(media.name, stream.width, stream.height, settings)
    # a header may say less than the frames are: the decoder refuses larger ones
    stream.codec_context.options = {"max_pixels": str(settings.image_pixels)}
    return stream


def video_stream(container) -> "av.video.stream.VideoStream | None":
    """The first video that is no cover picture; None where there is none."""
    return next((one for one in container.streams.video if not one.disposition & Disposition.attached_pic), None)


def _packets(container, stream, media: Media, settings: DecodingSettings) -> Packets:
    """What the packets say, read to their end."""
    shown, keys, longest, timed = [], [], 1, tells_times(container)
    for packet in container.demux(stream):
        if packet.size == 0 or packet.is_corrupt:
            continue
        timed &= packet.pts is not None
        if packet.is_keyframe and timed:
            keys.append(packet.pts)
        if not packet.is_discard:  # an edit list hides it
            shown.append(packet.pts)
        longest = packet.duration or longest
        if len(shown) > settings.video_frames:
            raise BadSample("too large", f"{media.name}: more than data.decoding.video_frames = {settings.video_frames} frames")
    if not shown:
        raise BadSample("unreadable video", f"{media.name}: it has no frames")
    if timed:
        start_N = np.unique(np.array(shown, dtype=np.int64))
        timed = len(start_N) == len(shown)  # where two frames have one time, times do not tell them apart
    if not timed:
        return Packets(Times(np.arange(len(shown), dtype=np.int64), len(shown)), np.zeros(0, np.int64), False)
    return Packets(Times(start_N, int(start_N[-1]) + longest), np.unique(np.array(keys, dtype=np.int64)), True)


class _Decoder:
    """Decodes wanted frames of a video as RGB. Frames that are shown at none of the known times (of damaged streams) are passed
    over."""

    def __init__(self, container, stream, media: Media, packets: Packets, settings: DecodingSettings):
        self.container, self.stream, self.media, self.packets, self.settings = container, stream, media, packets, settings
        self._to_rgb24 = VideoReformatter()  # one for all frames, without threads: each start of them costs 0.2 ms
        self._pixels = 0

    def straight(self, wanted_T: np.ndarray) -> list[np.ndarray]:
        """From the beginning, up to the last wanted frame."""
        found, places = [], self._places()
        for wanted in wanted_T.tolist():
            found += [self._rgb(frame) for frame in [_first_from(wanted, places)[1]] if frame is not None]
        return found

    def seeking(self, wanted_T: np.ndarray) -> list[np.ndarray] | None:
        """By way of the key frames before the wanted ones; None where a seek went too far."""
        self.container.seek(int(self.packets.times.start_N[0]), stream=self.stream)
        found, position, places = [], -1, self._places()
        for wanted in wanted_T.tolist():
            key = int(np.searchsorted(self.packets.key_K, self.packets.times.start_N[wanted], side="right")) - 1
            sought = key >= 0 and int(np.searchsorted(self.packets.times.start_N, self.packets.key_K[key])) - position > SEEK_FROM
            if sought:
                self.container.seek(int(self.packets.key_K[key]), stream=self.stream)
                places = self._places()
            before, (position, frame) = position, _first_from(wanted, places)
            if sought and (frame is None or position > wanted):
                return None
            position = before if frame is None else position
            found += [] if frame is None else [self._rgb(frame)]
        return found

    def _places(self) -> Iterator[tuple[int, "av.VideoFrame"]]:
        """(number among the frames that are shown, frame), as they are decoded."""
        for count, frame in enumerate(self.container.decode(self.stream)):
            counted = not self.packets.timed or frame.pts is None
            yield count if counted else int(np.searchsorted(self.packets.times.start_N, frame.pts)), frame

    def _rgb(self, frame) -> np.ndarray:
        check_pixels(self.media.name, frame.width, frame.height, self.settings)
        self._pixels += frame.width * frame.height
        if self._pixels > self.settings.video_pixels:
            limit = f"data.decoding.video_pixels = {self.settings.video_pixels}"
            raise BadSample("too large", f"{self.media.name}: its frames have together more pixels than {limit}")
        return as_shown(self._to_rgb24.reformat(frame, format="rgb24", threads=1).to_ndarray(), frame)


def _first_from(wanted: int, places: Iterator[tuple[int, "av.VideoFrame"]]) -> tuple[int, "av.VideoFrame | None"]:
    """The first frame that is not before the wanted one; (-1, None) where there is none."""
    return next(((position, frame) for position, frame in places if position >= wanted), (-1, None))


def as_shown(picture_HW3: np.ndarray, frame) -> np.ndarray:
    """A frame turned and mirrored as its display matrix says: a phone that is held upright records lying frames."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return picture_HW3
    # x' = a x + c y, y' = b x + d y, in 16.16 fixed point
    a, b, _, c, d = struct.unpack("=9i", bytes(matrix)[:36])[:5]
    if abs(b) > abs(a):
        picture_HW3, across, down = picture_HW3.transpose(1, 0, 2), c, b
    else:
        across, down = a, d
    picture_HW3 = picture_HW3[:, ::-1] if across < 0 else picture_HW3
    return np.ascontiguousarray(picture_HW3[::-1] if down < 0 else picture_HW3)
