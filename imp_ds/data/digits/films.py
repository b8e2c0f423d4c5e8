"""Handwritten digits moving left, right, up or down while a voice speaks the digit's word: mp4, h264 and AAC through PyAV.

Digit and voice are of the video's own split. A video is a pure function of (seed, split, number), encoded by one thread with
bit-exact flags, so the bytes do not depend on how many videos are made at a time.
Shapes: F frames, H height, W width.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import av
import numpy as np
import soundfile
from av.codec.context import Flags

from imp_ds.data.digits.captions import DIRECTIONS, WORDS, captions, class_names
from imp_ds.data.digits.images import Handwriting
from imp_ds.data.digits.speech import RATE_HZ

VIDEOS = {"train": 2400, "validation": 400, "test": 800}
SIDE, FRAMES, FRAMES_PER_S = 48, 8, 8
AUDIO = RATE_HZ * FRAMES // FRAMES_PER_S  # samples: as long as the video
# Without lookahead and rate control: with them the same frames gave other bytes in about 1 video of 200 to 600, more under
# load and more with several threads (unwritten memory, by the look of it); without, in none of 12,000.
_H264 = {"preset": "veryfast", "tune": "zerolatency", "qp": "18", "x264-params": "weightp=0:scenecut=0"}
_STEP_XY = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_DIGIT_SIDES = (30, 33)  # pixels, half open: about as large as in the images, so that one vision serves both
_SPEEDS = (1.4, 2.2)  # pixels per frame: seven steps stay inside the frame for the largest digit


def write(folder: Path, count: int, handwriting: Handwriting, split: str, clips: Path, rows: list[dict], seed: list[int]):
    """Write `count` videos as mp4 into `folder`; an iterator over their metadata rows, in order.

    Row: file_name, label (digit * 4 + direction), digit (0 to 9), direction (a word), drawing (index in scikit-learn's set),
    voice, captions.

    Args:
        clips, rows: folder and metadata of the split's speech.
        seed: of this split's videos.
    """
    labels = np.random.default_rng(seed).permutation(np.arange(count) % len(class_names("films"))).tolist()
    spoken = [[row for row in rows if row["label"] == digit and row["seconds"] <= AUDIO / RATE_HZ] for digit in range(len(WORDS))]
    make = partial(_write_one, folder, handwriting, split, clips, spoken, seed)
    return _in_order(make, labels)


def _in_order(make, labels: list[int]) -> Iterator[dict]:
    """`make(number, label)` of each label, two threads or more at work: the encoders run outside the interpreter's lock."""
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        yield from pool.map(make, range(len(labels)), labels)
    finally:
        pool.shutdown(cancel_futures=True)


def _write_one(folder, handwriting, split, clips, spoken, seed, number: int, label: int) -> dict:
    rng = np.random.default_rng([*seed, number])
    digit, direction = divmod(label, len(DIRECTIONS))
    drawing = int(rng.choice(handwriting.of(split, digit)))
    clip = spoken[digit][rng.integers(len(spoken[digit]))]
    frames_FHW = _move(handwriting, drawing, DIRECTIONS[direction], rng)
    name = f"{number:05d}.mp4"
    _encode(folder / name, frames_FHW, _place(clips / clip["file_name"], rng))
    return {"file_name": name, "label": label, "digit": digit, "direction": DIRECTIONS[direction], "drawing": drawing,
            "voice": clip["voice"], "captions": captions("films", label, rng)}  # fmt: skip


def _move(handwriting: Handwriting, drawing: int, direction: str, rng: np.random.Generator) -> np.ndarray:
    """The digit on its way over a dark, slightly slanted and grainy background, whole in every frame: uint8 [F, H, W]."""
    side = int(rng.integers(*_DIGIT_SIDES))
    ink = handwriting.draw(drawing, side) / 255.0 * rng.uniform(0.8, 1.0)
    room, travel = SIDE - side, rng.uniform(*_SPEEDS) * (FRAMES - 1)
    start_along, across = rng.uniform(0, room - travel), rng.uniform(0, room)
    step_x, step_y = _STEP_XY[direction]
    slope = np.linspace(-0.5, 0.5, SIDE) * rng.uniform(-0.1, 0.1, size=2)[:, None]
    background_HW = rng.uniform(0.05, 0.25) + slope[0][:, None] + slope[1] + rng.normal(0, 0.01, (SIDE, SIDE))
    frames_FHW = np.repeat(np.clip(background_HW, 0, 1)[None], FRAMES, axis=0)
    for frame, share in enumerate(np.linspace(0, 1, FRAMES)):
        along = start_along + travel * (share if step_x + step_y > 0 else 1 - share)
        x, y = np.rint((along, across) if step_x else (across, along)).astype(int)
        patch = frames_FHW[frame, y : y + side, x : x + side]
        patch += ink * (1 - patch)
    return np.rint(frames_FHW * 255).astype(np.uint8)


def _place(path: Path, rng: np.random.Generator) -> np.ndarray:
    """The clip somewhere in a silence as long as the video: int16 [SOUND]."""
    clip, _ = soundfile.read(path, dtype="int16")
    track = np.zeros(AUDIO, np.int16)
    start = rng.integers(0, AUDIO - len(clip) + 1)
    track[start : start + len(clip)] = clip
    return track


def _encode(path: Path, frames_FHW: np.ndarray, waveform: np.ndarray):
    """Write frames (grey, uint8) and audio (int16, mono, RATE_HZ) as mp4."""
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        video = container.add_stream("libx264", rate=FRAMES_PER_S, options=_H264)
        video.width, video.height, video.pix_fmt, video.thread_count = SIDE, SIDE, "yuv420p", 1
        audio = container.add_stream("aac", rate=RATE_HZ, layout="mono")
        # The default search for quantisers takes twice as long as all the rest of a video, and is not heard in one word.
        audio.bit_rate, audio.options = 48_000, {"aac_coder": "fast", "aac_tns": "0"}
        for stream in (video, audio):
            stream.codec_context.flags |= Flags.bitexact
        for frame_HW in frames_FHW:
            container.mux(video.encode(_yuv420p(frame_HW)))
        container.mux(video.encode())
        samples = av.AudioFrame.from_ndarray(waveform[None], format="s16", layout="mono")
        samples.sample_rate, samples.pts = RATE_HZ, 0
        container.mux(audio.encode(samples))
        container.mux(audio.encode())


def _yuv420p(frame_HW: np.ndarray) -> av.VideoFrame:
    """Grey to the planes of video: brightness in 16 to 235, no colour. PyAV's own conversion takes longer than the encoder."""
    height, width = frame_HW.shape
    planes = np.full((height * 3 // 2, width), 128, np.uint8)
    planes[:height] = np.rint(16 + frame_HW * (219 / 255))
    return av.VideoFrame.from_ndarray(planes, format="yuv420p")
