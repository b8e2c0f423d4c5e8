"""What recipes set of audio."""

from typing import Annotated

from pydantic import Field

from imp_ds.records import Record

_Count = Annotated[int, Field(ge=1)]


class AudioView(Record):
    """How a task sees audio: `seconds` of it. A longer clip is cut, at random in training; a shorter one is padded with
    silence."""

    seconds: float = Field(8.192, gt=0, description="length of the clip in seconds")
    drop_rate: float = Field(0.0, ge=0.0, lt=1.0, description="share of tokens dropped in training")


class AudioOptions(Record):
    """Sizes of a model for audio."""

    patch: tuple[_Count, _Count] = Field((16, 16), description="spectrogram frames and mel bins of a patch")
    max: tuple[_Count, _Count] = Field((1024, 128), description="the largest spectrogram, same units")


class AudioSettings(Record):
    """The log-mel spectrogram, the same for all tasks. The defaults are IMP's."""

    sampling_rate: int = Field(16000, ge=1, description="samples per second")
    frame_length: int = Field(2048, ge=2, description="samples of a frame")
    hop_length: int = Field(1024, ge=1, description="samples from one frame to the next")
    mel_bins: int = Field(128, ge=1, description="mel bands of the spectrogram")
    min_frequency: float = Field(80.0, ge=0, description="Hz")
    max_frequency: float = Field(7600.0, gt=0, description="Hz")
    normalize: bool = Field(False, description="bring each clip to mean 0 and variance 1, so that its loudness does not count")


class AudioAugmentation(Record):
    """What training changes at random in audio. Masks in spectrograms are SpecAugment (Park et al., 2019, arXiv 1904.08779)."""

    spec_masks: int = Field(0, ge=0, description="bands of time, and as many of frequency, that are masked in a spectrogram")
    spec_time: float = Field(0.2, ge=0.0, le=1.0, description="longest masked band of time, a share of the whole")
    spec_frequency: float = Field(0.2, ge=0.0, le=1.0, description="widest masked band of frequency, a share of the whole")
    speed: float = Field(0.0, ge=0.0, lt=1.0, description="largest relative change of an audio clip's speed and pitch")
