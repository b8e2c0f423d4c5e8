"""Feed damaged media to the decoders: python scripts/fuzz_media.py [--kinds image video audio] [--mutations 30000] [--seed 0]

Each sample is decoded in a child process, which may end, hang or grow; the sample that did so is named, and kept under --found.
A sample passes when it is decoded or raises BadSample, within --seconds and --memory. Each is a pure function of its kind, the
seed and its number, given the same files to begin with. 30,000 of video or audio take some ten minutes on one core, those of
images two to five. The last line says what was found; the exit code is 1 for an escape.
"""

import io
import os
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "scripts")]

from fuzz_runner import Kind, main  # noqa: E402

from helpers.damaged_images import image_files, mutated_image  # noqa: E402


def _video_files() -> dict[str, bytes]:
    from helpers.numbered_videos import KINDS, video_bytes

    files = {f"{place}.{name.rpartition('.')[2]}": video_bytes(name) for place, name in enumerate(KINDS)}
    os.environ.setdefault("SVT_LOG", "0")  # its encoder would report its settings
    for suffix, codec, width, height, pixels in (
        ("dv", "dvvideo", 720, 576, "yuv420p"), ("gxf", "mpeg2video", 720, 576, "yuv420p"), ("mov", "png", 64, 64, "rgb24"),
        ("avi", "ffv1", 64, 64, "yuv420p"), ("mov", "prores_ks", 64, 64, "yuv422p10le"), ("obu", "libsvtav1", 64, 64, "yuv420p"),
    ):  # fmt: skip
        files[f"{codec}.{suffix}"] = _frames(suffix, codec, width, height, pixels)
    return files


def _frames(container_format: str, codec: str, width: int, height: int, pixels: str) -> bytes:
    """A video of four plain frames."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        for number in range(4):
            frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 40 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def _tone(container_format: str, codec: str) -> bytes:
    """A recording of a quarter of a second."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=48000, layout="mono")
        tone_N = 0.5 * np.sin(np.arange(12000) / 20, dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(tone_N[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
        packer = av.AudioResampler(stream.format, "mono", 48000, frame_size=stream.frame_size or 1152)
        for part in [*packer.resample(frame), *packer.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode())
    return buffer.getvalue()


def _audio_files() -> dict[str, bytes]:
    import soundfile

    from helpers.numbered_videos import KINDS, SILENT, video_bytes

    noise_NC = 0.3 * np.random.default_rng(0).standard_normal((1600, 2)).clip(-3, 3)
    files = {}
    for kind in ("WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "W64", "RF64", "WAVEX"):
        buffer = io.BytesIO()
        soundfile.write(buffer, noise_NC, 16000, format=kind)
        files[f"{kind}.{kind.lower().removesuffix('ex')}"] = buffer.getvalue()
        files[f"{kind}.m4a"] = buffer.getvalue()  # by FFmpeg first
    buffer = io.BytesIO()
    soundfile.write(buffer, noise_NC, 16000, format="OGG", subtype="OPUS")
    files["opus.opus"] = buffer.getvalue()
    for name in KINDS:
        if name not in SILENT:
            files[f"video.{name}"] = video_bytes(name, tone=True)
    for suffix, codec in {"ac3": "ac3", "eac3": "eac3", "wv": "wavpack", "tta": "tta", "adts": "aac", "mp2": "mp2"}.items():
        files[f"{codec}.{suffix}"] = _tone(suffix, codec)
    return files


def _decode_video(name: str, data: bytes, rng: np.random.Generator) -> None:
    import av

    from imp_ds.modalities.media import Media
    from imp_ds.modalities.media_cache import MediaCache
    from imp_ds.modalities.vision.facts import vision_facts
    from imp_ds.modalities.vision.video import read_video
    from imp_ds.modalities.vision.view import VisionView

    av.logging.set_level(None)
    media = Media(name, data=data)
    vision_facts(media)
    read_video(media, VisionView(frames=int(rng.integers(1, 9))), None, MediaCache(0))


def _decode_audio(name: str, data: bytes, rng: np.random.Generator) -> None:
    import av

    from imp_ds.modalities.audio.facts import audio_facts
    from imp_ds.modalities.audio.windows import read_recordings
    from imp_ds.modalities.media import BadSample, Media
    from imp_ds.modalities.media_cache import MediaCache

    av.logging.set_level(None)
    media = Media(name, data=data)
    audio_facts(media)
    window, full = (read_recordings([media], 0.02, [one], MediaCache(0))[0] for one in (rng, None))
    for result in (window, full):
        if isinstance(result, BadSample):
            raise result


def _decode_image(name: str, data: bytes, rng: np.random.Generator) -> None:
    """As a picture or as a video of up to four frames, changed as in training or not; then by the exported processor."""
    import av

    from imp_ds.modalities.media import BadSample, Media
    from imp_ds.modalities.media_cache import MediaCache
    from imp_ds.modalities.views import Augmentation
    from imp_ds.modalities.vision.clips import read_clips
    from imp_ds.modalities.vision.facts import vision_facts
    from imp_ds.modalities.vision.view import VisionView
    from imp_ds.models.imp.image_processing_imp import ImpImageProcessor

    av.logging.set_level(None)
    media = Media(name, data=data)
    vision_facts(media)
    view = VisionView(frames=int(rng.integers(1, 5)), height=8, width=8)
    augment = Augmentation(crop_area=(0.3, 1.0), flip=True) if rng.random() < 0.3 else Augmentation()
    (clip,) = read_clips([media], view, [rng], MediaCache(0), augment)
    if isinstance(clip, BadSample):
        raise clip
    if rng.random() < 0.2:
        ImpImageProcessor(size=8, patch=(4, 4, 4)).preprocess(data)


KINDS = {
    "image": Kind(image_files, _decode_image, mutated_image),
    "video": Kind(_video_files, _decode_video),
    "audio": Kind(_audio_files, _decode_audio),
}

if __name__ == "__main__":
    main(__file__, __doc__, KINDS)
