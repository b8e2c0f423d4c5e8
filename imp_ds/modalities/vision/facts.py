"""What files of images and videos say of themselves in their headers: sizes, lengths and rates."""

from imp_ds.modalities.container import opened, seconds_of
from imp_ds.modalities.media import Media, first_facts
from imp_ds.modalities.vision.image import open_image
from imp_ds.modalities.vision.video import VIDEOS, video_stream


def vision_facts(media: Media) -> dict[str, float]:
    """Of an image "width" and "height"; of a video also "frames", "video seconds", "frames a second"; those that are known."""
    # what a name ends in is tried first, and may be wrong
    return first_facts([_video, _image] if media.suffix in VIDEOS else [_image, _video], media)


def _image(media: Media) -> dict:
    opened_image = open_image(media)
    with opened_image.file:
        return {"width": opened_image.image.width, "height": opened_image.image.height}


def _video(media: Media) -> dict:
    with opened(media, "unreadable video") as container:
        if (stream := video_stream(container)) is None:
            return {}
        seconds, rate = seconds_of(container, stream), float(stream.average_rate or 0)
        frames = stream.frames or round(seconds * rate)
        size = {"width": stream.width, "height": stream.height}
        return size | {"frames": frames, "video seconds": seconds, "frames a second": rate}
