"""Videos of which each frame shows its own number, in every container that can be written here.

A number is eight stripes, one for each bit, black or white: it survives every codec, and no frame can be taken for another.
"""

import io
from fractions import Fraction

import av
import numpy as np

WIDTH, HEIGHT = 128, 32  # of a number: stripes of 16 x 32
FRAMES = 50
_H264 = {"preset": "ultrafast", "bf": "3", "g": "12", "sc_threshold": "0", "b-adapt": "0"}
_VPX = {"deadline": "realtime", "cpu-used": "8", "g": "12"}

# name, which ends in a suffix: (container, codec, options of the codec)
KINDS = {
    "mp4": ("mp4", "libx264", _H264),
    "mov": ("mov", "libx264", _H264),
    "mkv": ("matroska", "libx264", _H264),
    "flv": ("flv", "libx264", _H264),
    "ts": ("mpegts", "libx264", _H264),
    "m2ts": ("mpegts", "libx264", _H264),
    "open-gop.mkv": ("matroska", "libx264", _H264 | {"x264-params": "open-gop=1"}),
    "open-gop.ts": ("mpegts", "libx264", _H264 | {"x264-params": "open-gop=1"}),
    "open-gop.mp4": ("mp4", "libx264", _H264 | {"x264-params": "open-gop=1"}),
    "one-key.mp4": ("mp4", "libx264", _H264 | {"g": "250"}),
    "one-key.ts": ("mpegts", "libx264", _H264 | {"g": "250"}),
    "h264.avi": ("avi", "libx264", _H264 | {"bf": "0"}),
    "avi": ("avi", "mpeg4", {"g": "12"}),
    "b-frames.avi": ("avi", "mpeg4", {"g": "12", "bf": "2"}),
    "mjpeg.avi": ("avi", "mjpeg", {}),
    "3gp": ("3gp", "mpeg4", {"g": "12"}),
    "mpeg1.mpg": ("mpeg", "mpeg1video", {"g": "12", "bf": "2"}),
    "mpeg2.mpg": ("vob", "mpeg2video", {"g": "12", "bf": "2"}),
    "vob": ("vob", "mpeg2video", {"g": "12"}),
    "mpeg2.ts": ("mpegts", "mpeg2video", {"g": "12", "bf": "2"}),
    "raw.mpg": ("mpeg2video", "mpeg2video", {"g": "12", "bf": "2"}),
    "webm": ("webm", "libvpx", _VPX),
    "alt-ref.webm": ("webm", "libvpx-vp9", _VPX | {"auto-alt-ref": "1", "lag-in-frames": "12"}),
    "ogv": ("ogg", "libvpx", _VPX),
    "wmv": ("asf", "wmv2", {"g": "12"}),
    "flv1.flv": ("flv", "flv", {"g": "12"}),
    "mxf": ("mxf", "mpeg2video", {"g": "12", "bf": "2"}),
    "h264.mxf": ("mxf", "libx264", _H264),  # its times are those of decoding
    "nut": ("nut", "libx264", _H264),
    "ivf": ("ivf", "libvpx", _VPX),
    "rm": ("rm", "rv10", {}),
    "swf": ("swf", "flv", {}),
    "wtv": ("wtv", "mpeg2video", {"g": "12", "bf": "2"}),
    "f4v": ("f4v", "libx264", _H264),
    "y4m": ("yuv4mpegpipe", "rawvideo", {}),
    "raw.h264": ("h264", "libx264", _H264),
    "raw.hevc": ("hevc", "libx265", {"preset": "ultrafast", "x265-params": "log-level=none"}),
    "raw.m4v": ("m4v", "mpeg4", {"g": "12"}),
}
SILENT = {"raw.mpg", "swf", "ivf", "y4m", "raw.h264", "raw.hevc", "raw.m4v"}  # those that hold no audio  # fmt: skip


def numbered(number: int) -> np.ndarray:
    """The picture of a number below 256: uint8 [H, W, 3]."""
    bits = (number >> np.arange(8)) & 1
    return np.broadcast_to((bits.repeat(WIDTH // 8) * 255).astype(np.uint8)[None, :, None], (HEIGHT, WIDTH, 3)).copy()


def numbers_of(clip_THW3: np.ndarray) -> list[int]:
    """What the frames show."""
    assert clip_THW3.shape[1:] == (HEIGHT, WIDTH, 3)
    stripes = clip_THW3.reshape(len(clip_THW3), HEIGHT, 8, WIDTH // 8, 3)[:, 4:-4, :, 4:-4].mean((1, 3, 4)) > 127
    return (stripes @ (1 << np.arange(8))).tolist()


def video_bytes(name: str, times: list[int] | None = None, *, tone: bool = False, rate: int = 25) -> bytes:
    """A video of a kind in KINDS.

    times: when each frame is shown, in units of 1 / rate; 0, 1, 2 ... of FRAMES without.
    tone: with an audio track, a tone of two seconds of 440 Hz.
    """
    container_format, codec, options = KINDS[name]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container_format) as container:
        video = container.add_stream(codec, rate=rate, options=options)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        video.codec_context.time_base = Fraction(1, rate)
        video.bit_rate = 4_000_000
        audio = _audio_stream(container, container_format) if tone else None
        for number, time in enumerate(range(FRAMES) if times is None else times):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, rate)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if audio is not None:
            _write_tone(container, audio)
    return buffer.getvalue()


_AUDIO = {"webm": "libopus", "ogg": "libopus", "mpeg": "mp2", "vob": "mp2", "avi": "mp2", "asf": "wmav2", "matroska": "flac",
          "mxf": "pcm_s16le", "wtv": "mp2", "rm": "ac3"}  # fmt: skip


def _audio_stream(container, container_format: str):
    audio = container.add_stream(_AUDIO.get(container_format, "aac"), rate=48000, layout="mono")
    audio.bit_rate = 64_000
    return audio


def _write_tone(container, audio) -> None:
    tone_N = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * 48000) / 48000).astype(np.float32)
    frame = av.AudioFrame.from_ndarray(tone_N[None], format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
    packer = av.AudioResampler(audio.codec_context.format, "mono", 48000, frame_size=audio.codec_context.frame_size or 1152)
    for piece in [*packer.resample(frame), *packer.resample(None)]:
        container.mux(audio.encode(piece))
    container.mux(audio.encode())
