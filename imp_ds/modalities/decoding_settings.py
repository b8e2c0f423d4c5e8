"""How media and captions are decoded: bounds on what comes out, whatever a header claims, and the ground of transparency."""

from typing import Annotated

from pydantic import Field

from imp_ds.records import Record

_Value = Annotated[int, Field(ge=0, le=255)]
WHITE = (255, 255, 255)


class DecodingSettings(Record):
    """The largest media and captions that are read: a sample beyond them is left out as "too large". The defaults let pass what
    cameras, recorders and people make, and keep a process that decodes below some 2 GiB."""

    image_pixels: int = Field(1 << 26, ge=1, description="largest number of pixels of an image, or of one frame of a video")
    video_pixels: int = Field(1 << 28, ge=1, description="largest number of pixels of all frames of a video that a view takes")
    video_frames: int = Field(1 << 20, ge=1, description="largest number of frames of a video: nine hours at 30 a second")
    audio_samples: int = Field(1 << 28, ge=1, description="largest number of samples of a recording, of all channels together")
    audio_seconds: float = Field(43_200.0, gt=0, description="largest number of seconds that are read of a recording")
    audio_min_rate: int = Field(1000, ge=1, description="lowest sampling rate of a recording, in Hz")
    audio_max_rate: int = Field(400_000, ge=1, description="highest sampling rate of a recording, in Hz")
    caption_characters: int = Field(100_000, ge=1, description="largest number of characters of a caption")
    alpha_ground: tuple[_Value, _Value, _Value] = Field(WHITE, description="colour (R, G, B) that transparent pictures lie on")


DEFAULTS = DecodingSettings()  # of functions that decode; nobody changes it
