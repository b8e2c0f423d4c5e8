"""Feed damaged media to the decoders: python scripts/fuzz_media.py [--kinds image video audio] [--mutations 30000] [--seed 0]

Each sample is decoded in a child process, which may end, hang or grow; the sample that did so is named, and kept under --found.
A sample passes when it is decoded or raises BadSample, within --seconds and --memory. Each is a pure function of its kind, the
seed and its number, given the same files to begin with. 30,000 of video or audio take some ten minutes on one core, those of
images two to five. The last line says what was found; the exit code is 1 for an escape.
"""

import io
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/data"), str(ROOT / "scripts")]

from fuzz_runner import Kind, main  # noqa: E402

from damaged_images import image_files, mutated_image  # noqa: E402


def _video_files() -> dict[str, bytes]:
    from numbered_videos import KINDS, video_bytes

    return {f"{place}.{name.rpartition('.')[2]}": video_bytes(name) for place, name in enumerate(KINDS)}


def _audio_files() -> dict[str, bytes]:
    import soundfile
    from numbered_videos import video_bytes

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
    for kind in ("mp4", "mkv", "ts", "wmv", "avi", "flv"):
        files[f"video.{kind}"] = video_bytes(kind, tone=True)
    return files


def _decode_video(name: str, data: bytes, rng: np.random.Generator) -> None:
    import av

    from imp_ds.data.decoding.film import read_film
    from imp_ds.data.files.cache import MediaCache
    from imp_ds.data.inspect.media_facts import media_facts
    from imp_ds.data.samples import Media
    from imp_ds.tasks import VisionView

    av.logging.set_level(None)
    media = Media(name, data=data)
    media_facts("vision", media)
    read_film(media, VisionView(frames=int(rng.integers(1, 9))), None, MediaCache(0))


def _decode_audio(name: str, data: bytes, rng: np.random.Generator) -> None:
    import av

    from imp_ds.data.decoding.sound import read_sounds
    from imp_ds.data.files.cache import MediaCache
    from imp_ds.data.inspect.media_facts import media_facts
    from imp_ds.data.samples import BadSample, Media

    av.logging.set_level(None)
    media = Media(name, data=data)
    media_facts("audio", media)
    window, whole = (read_sounds([media], 0.02, [one], MediaCache(0))[0] for one in (rng, None))
    for result in (window, whole):
        if isinstance(result, BadSample):
            raise result


def _decode_image(name: str, data: bytes, rng: np.random.Generator) -> None:
    """As a picture or as a video of up to four frames, changed as in training or not; then by the exported processor."""
    import av

    from imp_ds.data.decoding.picture import read_clips
    from imp_ds.data.files.cache import MediaCache
    from imp_ds.data.inspect.media_facts import media_facts
    from imp_ds.data.samples import BadSample, Media
    from imp_ds.models.imp.image_processing_imp import ImpImageProcessor
    from imp_ds.tasks import Augmentation, VisionView

    av.logging.set_level(None)
    media = Media(name, data=data)
    media_facts("vision", media)
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
