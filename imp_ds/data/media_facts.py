"""What media files say of themselves in their headers: sizes, lengths and rates."""

import av
import soundfile
from PIL import Image

from imp_ds.data.decoding.container import opened
from imp_ds.data.decoding.film import FILMS
from imp_ds.data.decoding.sound_files import BY_LIBSNDFILE
from imp_ds.data.samples import BadSample, Media


def media_facts(role: str, media: Media) -> dict[str, float]:
    """The numbers of an image ("width", "height"), a film (these, "frames", "film seconds", "frames a second") or a sound ("sound
    seconds", "samples a second", "channels"); those that the header does not tell are left out.

    Args:
        role: "vision", or "audio": the sound of a film, too.
    """
    read = _sound if role == "audio" else _film if media.suffix in FILMS else _image
    try:
        return {name: float(value) for name, value in read(media).items() if value}
    except (BadSample, OSError, ValueError, SyntaxError, soundfile.SoundFileError, Image.DecompressionBombError):
        return {}


def _image(media: Media) -> dict:
    with media.open() as file, Image.open(file) as image:
        return {"width": image.width, "height": image.height}


def _film(media: Media) -> dict:
    with opened(media, "unreadable film") as container:
        if not container.streams.video:
            return {}
        stream = container.streams.video[0]
        seconds, rate = _seconds(container, stream), float(stream.average_rate or 0)
        frames = stream.frames or round(seconds * rate)
        size = {"width": stream.width, "height": stream.height}
        return size | {"frames": frames, "film seconds": seconds, "frames a second": rate}


def _sound(media: Media) -> dict:
    if media.suffix in BY_LIBSNDFILE:
        with media.open() as file:
            known = soundfile.info(file)
        return {"sound seconds": known.duration, "samples a second": known.samplerate, "channels": known.channels}
    with opened(media, "unreadable sound") as container:
        if not container.streams.audio:
            return {}
        stream = container.streams.audio[0]
        length = {"sound seconds": _seconds(container, stream)}
        return length | {"samples a second": stream.rate, "channels": stream.channels}


def _seconds(container, stream) -> float:
    """0 where the file does not say."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / av.time_base
