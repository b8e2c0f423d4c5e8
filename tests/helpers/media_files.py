"""Small media files for the tests of this folder, written by hand-made numbers."""

import json
import struct
import zlib

import av
import numpy as np
import soundfile
from PIL import Image


def write_video(path, frames_THWC, waveform=None, rate=16000, fps=25, options=None):
    """An mp4 (or whatever the suffix says) with an optional mono or stereo AAC audio track, float [C, N]; `options` of x264."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps)
        video.height, video.width = frames_THWC.shape[1:3]
        video.pix_fmt, video.options = "yuv444p", {"crf": "0", "preset": "ultrafast", **(options or {})}
        audio = None
        if waveform is not None:
            audio = container.add_stream("aac", rate=rate, layout="mono" if len(waveform) == 1 else "stereo")
        for frame in frames_THWC:
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(video.encode())
        if audio is not None:
            for start in range(0, waveform.shape[1], 1024):
                piece = np.ascontiguousarray(waveform[:, start : start + 1024], dtype=np.float32)
                frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=audio.layout.name)
                frame.sample_rate, frame.pts = rate, start
                container.mux(audio.encode(frame))
            container.mux(audio.encode())


def write_corpus(root, rows=20, splits=("train", "validation")):
    """root/{images,films,speech}/{split}: `rows` pictures of grey 10 * row, videos of 3 such frames, tones of 100 (row + 1)
    Hz."""
    for split in splits:
        for kind in ("images", "films", "speech"):
            folder = root / kind / split
            folder.mkdir(parents=True)
            lines = []
            for i in range(rows):
                name = f"{i}.{dict(images='png', films='mp4', speech='flac')[kind]}"
                tone = 0.5 * np.sin(2 * np.pi * (i + 1) * 100 * np.arange(3200 + 100 * i) / 16000).astype(np.float32)
                if kind == "images":
                    Image.fromarray(np.full((32, 32), 10 * i % 256, np.uint8)).save(folder / name)
                elif kind == "films":
                    write_video(folder / name, np.full((3, 32, 32, 3), 10 * i % 256, np.uint8), tone[None])
                else:
                    soundfile.write(folder / name, tone, 16000)
                lines.append(dict(file_name=name, label=i % 10, captions=[f"{kind} {i}", f"number {i}", f"this is {i}"]))
            (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def bomb(kind):
    """The head of a PNG of 100,000 x 100,000, or of a FLAC of 2^36 - 1 samples."""
    if kind == "x.png":
        chunk = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
        head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
        data = b"IDAT" + zlib.compress(bytes(100_000))
        return head + struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    packed = (44100 << 44) | (15 << 36) | (2**36 - 1)  # rate, channels - 1 and bits - 1, samples
    return b"fLaC" + bytes([0x80, 0, 0, 34]) + struct.pack(">HH", 4096, 4096) + bytes(6) + packed.to_bytes(8, "big") + bytes(16)
