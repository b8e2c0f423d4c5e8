"""From a row of a source to what a processor takes: frames, sound, one caption, a label.

Media are opened as local files and handed to the decoders as file objects, with the containers that we mean to read
named one by one: a playlist that poses as a film can fetch nothing. Sizes are read from the header before any pixel
is decoded. Training draws a caption, evaluation takes the first; nothing else here is random.

Shapes: T frames, H height, W width, C channels of a sound, N samples of a sound.
"""

from pathlib import Path

import av
import numpy as np
import soundfile
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageOps

from imp_ds.data.cache import MediaCache
from imp_ds.data.sources import FolderSource
from imp_ds.modalities.vision import clip_indices
from imp_ds.models.imp.image_processing_imp import to_rgb
from imp_ds.tasks import Views

IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
SOUNDS = {".wav", ".flac", ".ogg", ".mp3", ".opus"}  # by libsndfile; every other sound, and all films, by FFmpeg
_IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,aac,mp3,ogg,wav,flac,asf"
MAX_IMAGE_PIXELS = 1 << 27  # 128 M, 384 MiB as RGB
MAX_FILM_FRAMES = 1 << 20  # more than nine hours at 30 frames per second
MAX_SOUND_SAMPLES = 1 << 28  # an hour and a half at 48 kHz, 1 GiB as float32


class DecodeError(Exception):
    """A media file that cannot be decoded. `path` names it, `reason` says why."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(str(path), reason)
        self.path, self.reason = str(path), reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def decode(source: FolderSource, index: int, views: Views, rng=None, cache: MediaCache | None = None) -> dict:
    """One sample, with an entry for each view: "vision": uint8 [T, H, W, 3]; "audio": (float32 [N] mono, rate); "text": str;
    and "label": int where the source has one.

    Args:
        rng: draws the caption in training; None takes the first.
        cache: keeps decoded frames and sounds.

    Raises DecodeError for media that are damaged, too large or of an unknown kind, UserError for a missing file.
    """
    cache = MediaCache(0) if cache is None else cache
    row, sample = source.row(index), {}
    if views.vision is not None:
        frames, path = views.vision.frames, source.folder / row["vision"]
        sample["vision"] = cache.get((str(path), frames), lambda: read_vision(source.path(index, "vision"), frames))
    if views.audio is not None:
        path = source.folder / row["audio"]
        sample["audio"] = cache.get((str(path), "sound"), lambda: read_sound(source.path(index, "audio")))
    if views.text is not None:
        captions = row["text"]
        sample["text"] = captions[0 if rng is None else int(rng.integers(len(captions)))]
    if "label" in row:
        sample["label"] = int(row["label"])
    return sample


def read_vision(path: Path, frames: int) -> np.ndarray:
    """The image, or `frames` frames of the film (fewer when it has fewer): uint8 [T, H, W, 3]."""
    return read_image(path)[None] if path.suffix.lower() in IMAGES else read_film(path, frames)


def read_image(path: Path) -> np.ndarray:
    """uint8 [H, W, 3] of any mode, upright by its EXIF orientation."""
    try:
        with open(path, "rb") as file, Image.open(file, formats=_IMAGE_FORMATS) as image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise DecodeError(path, f"{image.width} x {image.height} pixels are more than {MAX_IMAGE_PIXELS}")
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise DecodeError(path, f"not a readable image ({error})") from error


def read_film(path: Path, frames: int) -> np.ndarray:
    """`frames` frames spread uniformly over the film (all, when it has fewer): uint8 [T, H, W, 3]."""
    try:
        with open(path, "rb") as file, _open(file) as container:
            if not container.streams.video:
                raise DecodeError(path, "the file has no pictures")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # several loader workers share the cores
            if stream.width * stream.height > MAX_IMAGE_PIXELS or stream.frames > MAX_FILM_FRAMES:
                raise DecodeError(path, f"{stream.frames} frames of {stream.width} x {stream.height} are too many")
            total = stream.frames or _count(container, stream)
            wanted = set(clip_indices(total, frames).tolist())
            pictures, to_rgb24 = [], VideoReformatter()  # one for all frames, without threads: each start of them costs 0.2 ms
            for number, frame in enumerate(container.decode(stream)):
                if number in wanted:
                    pictures.append(to_rgb24.reformat(frame, format="rgb24", threads=1).to_ndarray())
                    if len(pictures) == len(wanted):
                        break
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise DecodeError(path, f"not a readable film ({error})") from error
    if not pictures:
        raise DecodeError(path, "the film has no frames")
    return np.stack(pictures)


def read_sound(path: Path) -> tuple[np.ndarray, int]:
    """(float32 [N], samples per second); channels are averaged. A film's sound track is a sound."""
    if path.suffix.lower() not in SOUNDS:
        return _read_sound_track(path)
    try:
        with soundfile.SoundFile(str(path)) as file:
            if file.frames * file.channels > MAX_SOUND_SAMPLES:
                raise DecodeError(path, f"{file.frames} samples are more than {MAX_SOUND_SAMPLES // file.channels}")
            samples_NC, rate = file.read(dtype="float32", always_2d=True), file.samplerate
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        raise DecodeError(path, f"not a readable sound ({error})") from error
    return _mono(samples_NC.T, path), rate


def _read_sound_track(path: Path) -> tuple[np.ndarray, int]:
    try:
        with open(path, "rb") as file, _open(file) as container:
            if not container.streams.audio:
                raise DecodeError(path, "the file has no sound")
            stream = container.streams.audio[0]
            stream.codec_context.thread_count = 1
            rate, planar = stream.rate, av.AudioResampler(format="fltp")
            pieces, total = [], 0
            for frame in container.decode(stream):
                pieces += [piece.to_ndarray() for piece in planar.resample(frame)]
                total += pieces[-1].size if pieces else 0
                if total > MAX_SOUND_SAMPLES:
                    raise DecodeError(path, f"more than {MAX_SOUND_SAMPLES} samples")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise DecodeError(path, f"not a readable sound ({error})") from error
    if not pieces:
        raise DecodeError(path, "the sound has no samples")
    return _mono(np.concatenate(pieces, axis=1), path), rate


def _mono(samples_CN: np.ndarray, path: Path) -> np.ndarray:
    if samples_CN.shape[1] == 0:
        raise DecodeError(path, "the sound has no samples")
    mono_N = samples_CN[0] if len(samples_CN) == 1 else samples_CN.mean(axis=0)
    if not np.isfinite(mono_N).all():
        raise DecodeError(path, "the sound has samples that are not finite numbers")
    return np.ascontiguousarray(mono_N, dtype=np.float32)


def _open(file):
    # An empty protocol list would still allow "file"; the format list leaves out every container that names other files.
    return av.open(file, mode="r", options={"format_whitelist": _CONTAINERS, "protocol_whitelist": "none"})


def _count(container, stream) -> int:
    """Frames of a film whose header does not say, by its packets; the film is wound back."""
    total = sum(1 for packet in container.demux(stream) if packet.size)
    container.seek(0)
    return total
