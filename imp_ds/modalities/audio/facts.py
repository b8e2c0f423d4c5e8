"""What files of recordings say of themselves in their headers: lengths and rates."""

from contextlib import closing

from imp_ds.modalities.audio.recordings import open_sound
from imp_ds.modalities.container import opened, seconds_of
from imp_ds.modalities.media import Media, first_facts


def audio_facts(media: Media) -> dict[str, float]:
    """"sound seconds", "samples a second" and "channels" of a recording or of a video's audio, those that the header has."""
    return first_facts([_sound], media)


def _sound(media: Media) -> dict:
    with closing(open_sound(media)) as sound:
        known = {"samples a second": sound.rate, "channels": sound.channels}
        if sound.length is not None:
            return {"sound seconds": sound.length / sound.rate} | known
    with opened(media, "unreadable sound") as container:
        return {"sound seconds": seconds_of(container, container.streams.audio[0])} | known
