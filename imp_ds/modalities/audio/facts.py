"""What files of recordings say of themselves in their headers: lengths and rates."""

from contextlib import closing

from imp_ds.modalities.audio.recordings import open_recording
from imp_ds.modalities.container import opened, seconds_of
from imp_ds.modalities.media import Media, first_facts


def audio_facts(media: Media) -> dict[str, float]:
    """"audio seconds", "samples a second" and "channels" of a recording or of a video's audio, those that the header has."""
    return first_facts([_waveform], media)


def _waveform(media: Media) -> dict:
    with closing(open_recording(media)) as waveform:
        known = {"samples a second": waveform.rate, "channels": waveform.channels}
        if waveform.length is not None:
            return {"audio seconds": waveform.length / waveform.rate} | known
    with opened(media, "unreadable audio") as container:
        return {"audio seconds": seconds_of(container, container.streams.audio[0])} | known
