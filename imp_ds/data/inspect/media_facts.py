"""What media files say of themselves in their headers: sizes, lengths and rates."""

from contextlib import closing

import av

from imp_ds.data.decoding.container import opened
from imp_ds.data.decoding.film import FILMS, video_stream
from imp_ds.data.decoding.image import open_image
from imp_ds.data.decoding.sound_files import open_sound
from imp_ds.data.samples import Media


def media_facts(role: str, media: Media) -> dict[str, float]:
    """The numbers of an image ("width", "height"), a film (these, "frames", "film seconds", "frames a second") or a sound ("sound
    seconds", "samples a second", "channels"); those that the header does not give are left out.

    Args:
        role: "vision", or "audio": the sound of a film, too.
    """
    # what a name ends in is tried first, and may be wrong
    for read in [_sound] if role == "audio" else [_film, _image] if media.suffix in FILMS else [_image, _film]:
        try:
            return {name: float(value) for name, value in read(media).items() if value}
        except Exception:  # whatever a library runs into with a damaged header: decoding says what is wrong with it
            continue
    return {}


def _image(media: Media) -> dict:
    opened_image = open_image(media)
    with opened_image.file:
        return {"width": opened_image.image.width, "height": opened_image.image.height}


def _film(media: Media) -> dict:
    with opened(media, "unreadable film") as container:
        if (stream := video_stream(container)) is None:
            return {}
        seconds, rate = _seconds(container, stream), float(stream.average_rate or 0)
        frames = stream.frames or round(seconds * rate)
        size = {"width": stream.width, "height": stream.height}
        return size | {"frames": frames, "film seconds": seconds, "frames a second": rate}


def _sound(media: Media) -> dict:
    with closing(open_sound(media)) as sound:
        known = {"samples a second": sound.rate, "channels": sound.channels}
        if sound.length is not None:
            return {"sound seconds": sound.length / sound.rate} | known
    with opened(media, "unreadable sound") as container:
        return {"sound seconds": _seconds(container, container.streams.audio[0])} | known


def _seconds(container, stream) -> float:
    """0 where the file does not say."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / av.time_base
