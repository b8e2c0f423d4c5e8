"""Videos and audio in containers, opened by FFmpeg through PyAV so that they can reach nothing but their own bytes."""

from collections.abc import Iterator
from contextlib import contextmanager

import av

from imp_ds.modalities.media import BadSample, Media

_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,aac,mp3,ogg,wav,flac,asf,aiff,au,caf,w64,"
_CONTAINERS += "mxf,gxf,dv,nut,ivf,obu,rm,swf,wtv,nsv,yuv4mpegpipe,h264,hevc,m4v,amr,ape,wv,tta,ac3,eac3"
# An empty protocol list would still allow "file"; the format list leaves out every container that names other files.
_OPTIONS = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "none"}

_INDEXED = {"mov", "mp4", "matroska", "webm", "flv"}


def finds_times(container) -> bool:
    """Whether the container has an index of times, so that a seek finds a time, and its beginning, without a search."""
    return bool(_INDEXED & set(container.format.name.split(",")))


def tells_times(container) -> bool:
    """Whether packets say when frames are shown. Those of MXF give the order of decoding as times, where the writer had no other;
    its frames are equally long."""
    return container.format.name != "mxf"


@contextmanager
def opened(media: Media, failure: str) -> Iterator[av.container.InputContainer]:
    """The container of a video or a recording; whatever its decoder runs into inside the context is raised as
    BadSample(`failure`)."""
    with media.open() as file:
        try:
            with av.open(file, mode="r", options=_OPTIONS) as container:
                yield container
        except BadSample:
            raise
        except MemoryError as error:
            raise BadSample("too large", f"{media.name}: no memory for it") from error
        except Exception as error:  # FFmpeg's errors, and what PyAV runs into with what it gave
            message = str(error).strip().partition("\n")[0] or type(error).__name__
            raise BadSample(failure, f"{media.name}: {message}") from error


def seconds_of(container, stream) -> float:
    """Length of a stream; 0 where the file does not say."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / av.time_base
